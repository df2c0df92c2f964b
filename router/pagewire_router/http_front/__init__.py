"""The HTTP front: the routes of OpenAI's API and its relatives, as an ASGI application on uvicorn."""
