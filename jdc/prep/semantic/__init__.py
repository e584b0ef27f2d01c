"""Documents by their meaning: embeddings, clusters of them, and duplicates within clusters."""
