"""What is learned: one file a task.

A task is a frozen dataclass whose fields are the keys of `config.task`, and
the model, with these methods:

  batch_spec(size): shapes of one training batch.
  init(key): the variables of the model.
  loss(variables, batch, key, step, train): a scalar and a dict of scalars.
  metrics(variables, batch): a dict of vectors, one value an example; their
    means over a data set are the evaluation.
"""
