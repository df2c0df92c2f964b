"""Names of the files by which a router knows a shard's model, as GetModelFiles sends them."""

TOKENIZER_FILE = "tokenizer.json"
SETTINGS_FILE = "tokenizer_settings.json"
"""Not the model's own: what its tokenizer.json cannot say, as transformers reads the other files."""
TEMPLATE_FILE = "chat_template.jinja"
TEMPLATE_FOLDER = "additional_chat_templates/"
