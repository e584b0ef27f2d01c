"""What a pipeline writes: documents, token shards, the card of a data set."""
