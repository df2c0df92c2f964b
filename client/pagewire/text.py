"""What text may hold on its way to a server."""


def is_encodable(text: str) -> bool:
    """Whether UTF-8 can encode it: it has no lone surrogates, such as undecodable bytes of a file name leave behind."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
