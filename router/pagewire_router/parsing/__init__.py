"""Takes a model's output apart into content, reasoning and tool calls, as it streams."""
