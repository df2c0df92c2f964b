"""From text and chat to tokens, and back."""
