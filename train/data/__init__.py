"""The training data: from documents to rows, and from rows to batches on devices."""
