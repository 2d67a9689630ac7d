"""What is learned: one file a task.

A task is a frozen dataclass. Its fields are the keys of `config.task`, and
those of these that it wants, which the program supplies:

  model: the Flax module.
  class_names, image_shape: of the data; see `vit_jax.training.inputs`.
  tokenizer: what turns texts into the model's tokens, None if there is none.
  to_steps: turns a length such as '5%' into steps; None outside training.
  frozen: another trained model that this one learns with, with its own `task`
    and `variables`. The class attribute `teacher` names the key of
    `config.task` that holds its path.

What it reads is the class attribute `reads`, one of

  'labels': batches of `image` and `label`. Where the class attribute
    `share_of_labels` names a key of `config.task` that is 0, training reads no
    labels: its batches are without, its images of any classes or of none.
  'images': batches of `image`.
  'views': batches of `image` and `view`, another augmentation of the same.
  'captions': batches of `image`, `text`, `identity` and `truncated`; see
    `vit_jax.data.pairs`.

and where it wants them so, `bounds` are the values of black and of white in
images. Its methods are

  batch_spec(size): shapes of one training batch.
  init(key): all variables: 'params', and collections that no gradient changes.
  loss(variables, batch, key, step, train): a scalar, a dict of scalars, and
    those collections that the step changes, as they are after it.
  metrics(variables, batch): a dict of vectors, one value an example; their
    means over a data set are the evaluation.

Not every task has these:

  test_batch_spec(size): shapes of a test batch, where it has more than one of
    training.
  intermediates(variables, image): what the image model computes on the way, by
    name; few-shot evaluation and linear probes take their features from it.
  warning(means): what to tell a person of means of the training metrics that
    show a training gone wrong, '' otherwise.
  predict(variables, image): probabilities of the classes.
  pictures(variables, batches): pairs of a name and a figure for the report.
  encode_image, and encode_text or score_features: what retrieval and zero-shot
    classification compare; see `vit_jax.evaluation.pair_features`.
  embed(variables, batch, key), loss_of_features(params, features, batch): the
    two halves of a loss that compares all examples of a batch, so that large
    batches can go through in parts; see `vit_jax.training.gradient_cache`.
"""
