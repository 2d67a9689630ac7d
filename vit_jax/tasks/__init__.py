"""What is learned: one file a task.

A task is a frozen dataclass whose fields are the keys of `config.task`,
the model, `class_names` and `image_shape`, with these methods:

  batch_spec(size): shapes of one training batch.
  init(key): the variables of the model.
  loss(variables, batch, key, step, train): a scalar and a dict of scalars.
  metrics(variables, batch): a dict of vectors, one value an example; their
    means over a data set are the evaluation.
  predict(variables, image): probabilities.
  pictures(variables, batches): where there is something to show, pairs of a
    name and a figure for the report.
"""
