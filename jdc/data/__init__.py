"""From raw text to the rows of each training step."""
