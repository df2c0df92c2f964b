"""Names of the files by which a router knows a shard's model, as GetModelFiles sends them."""

TOKENIZER_FILE = "tokenizer.json"
SETTINGS_FILE = "tokenizer_settings.json"
"""A file that the shard makes: settings of the tokenizer that tokenizer.json lacks, as transformers reads them."""
TEMPLATE_FILE = "chat_template.jinja"
TEMPLATE_FOLDER = "additional_chat_templates/"
