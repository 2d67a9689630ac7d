# shellcheck shell=bash
# What the scripts beside this one share: the checkout, its Python packages in
# .venv, and one cache of compiled programs. To be sourced.

checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
venv="$checkout/.venv"

# A program compiled once is loaded by every later run and every test.
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$checkout/.cache/jax}"

# Prints the first Python that is new enough and can make environments.
find_python() {
  local candidate usable
  # Debian's python3 has neither module until python3-venv is installed.
  usable='import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))'
  for candidate in python3 python3.11 python3.12 python3.13; do
    if "$candidate" -c "$usable" >/dev/null 2>&1; then
      echo "$candidate"
      return
    fi
  done
  cat >&2 <<'MESSAGE'
error: no Python 3.11 or newer with its module venv was found (tried python3,
python3.11, python3.12 and python3.13). Install one, for example with
"apt install python3-venv" or from https://www.python.org/downloads/, and start
this again.
MESSAGE
  return 1
}

# Prints what the packages in .venv depend on: Python and the requirements.
requirements_key() {
  "$1" -c '
import hashlib, pathlib, sys
files = [pathlib.Path(path).read_bytes() for path in sys.argv[1:]]
print(sys.version, hashlib.sha256(b"\0".join(files)).hexdigest())
' "$checkout/setup.py" "$checkout/pyproject.toml"
}

holds() {
  [[ -f $1 && $(<"$1") == "$2" ]]
}

# Makes .venv and installs this package into it, unless that was done before.
# The first argument is '' or the extra to install as well, such as '[test]'.
install_package() {
  local extra=$1 python version key
  python=$(find_python)
  version=$("$python" -c 'import sys; print(*sys.version_info[:3], sep=".")')
  # It does not survive a move: the programs in it name their own place.
  version="Python $version in $venv"
  key=$(requirements_key "$python")
  if holds "$venv/whole" "$version" && holds "$venv/installed$extra" "$key"
  then
    return
  fi
  if ! holds "$venv/whole" "$version"; then
    "$python" -m venv --clear "$venv"
  fi
  # Missing while packages are installed: what an interruption leaves behind is
  # not to be trusted, and the next start begins anew.
  rm -f "$venv/whole"
  echo "Installing vit_jax$extra into $venv; this is done once." >&2
  "$venv/bin/python" -m pip install --quiet --no-input \
    --disable-pip-version-check --editable "$checkout$extra"
  echo "$key" >"$venv/installed$extra"
  # An extra comes with all that the package itself needs.
  echo "$key" >"$venv/installed"
  echo "$version" >"$venv/whole"
}
