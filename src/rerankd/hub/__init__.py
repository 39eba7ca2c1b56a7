"""Models on Hugging Face, ModelScope and this disk: references, file selection, pulls and the local store."""
