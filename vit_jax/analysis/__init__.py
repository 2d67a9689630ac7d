"""Pictures and figures of models, trained or not."""
