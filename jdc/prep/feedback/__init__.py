"""What a run learnt about its documents becomes the next version of the data."""
