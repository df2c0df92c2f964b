"""From a Hugging Face model to a decoder with weights."""
