"""Turn documents and sentence pairs into packed token streams, and a training schedule into exact batches."""
