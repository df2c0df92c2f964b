"""The process in which templates run that clients send. See template_process.py for the other end.

A template is a program, and the sandbox bounds neither its time nor its memory: `9 ** 9 ** 9` alone holds a
process for good. So it runs here, one request after another, until the router kills the process. The limits are set
after everything is imported and before anything is read.

Messages on standard input and output: four bytes of length, big-endian, then the content. A request is a JSON object;
an answer is one byte of `Answer`, then UTF-8.
"""

import json
import os
import signal
import sys
import time
from contextlib import suppress
from typing import BinaryIO

from pagewire_router.text.chat_template import ChatTemplate, ChatTemplateError, Conversation, RenderedTooLong
from pagewire_router.text.template_environment import template_environment

READY = b"R"
"""The first byte that the process writes."""
TEXT = b"T"
"""The answer is the rendered text."""
REFUSED = b"E"
"""The answer says why there is none."""
TOO_LONG = b"L"
"""The text would be too long."""
LENGTH_BYTES = 4
MAX_MEMORY_BYTES = 512 * 1024 * 1024
"""Of address space; some 100 MB of it are Python's own."""
NICENESS = 10
"""Where cores are short, the router comes first."""
_PR_SET_PDEATHSIG = 1


def main(max_cpu_s: int) -> None:
    """Answers requests until standard input ends. max_cpu_s: computing time for each of them."""
    template_environment().from_string("{{ messages }}")  # Imports what is imported when it is first needed.
    time.localtime()  # Reads the time zone.
    parent = os.getppid()
    _end_with_parent()
    os.nice(NICENESS)
    _limit_resources()
    if os.getppid() != parent:
        return
    sys.stdout.buffer.write(READY)
    sys.stdout.buffer.flush()
    while (request := _read(sys.stdin.buffer)) is not None:
        _limit_cpu(max_cpu_s)
        answer = _answer(request)
        sys.stdout.buffer.write(len(answer).to_bytes(LENGTH_BYTES, "big") + answer)
        sys.stdout.buffer.flush()


def _read(stream: BinaryIO) -> bytes | None:
    head = stream.read(LENGTH_BYTES)
    if len(head) < LENGTH_BYTES:
        return None
    length = int.from_bytes(head, "big")
    content = stream.read(length)
    return content if len(content) == length else None


def _answer(data: bytes) -> bytes:
    try:
        request = json.loads(data)
        conversation = Conversation(**request["conversation"])
        template = ChatTemplate(request["template"])
        return TEXT + template.render(conversation, request["special_tokens"], request["max_chars"]).encode()
    except RenderedTooLong as error:
        return TOO_LONG + str(error).encode()
    except ChatTemplateError as error:
        return REFUSED + str(error).encode()
    except MemoryError:
        return REFUSED + b"the chat template needs too much memory"


def _end_with_parent() -> None:
    """A template that holds the interpreter does not notice that standard input has ended: the kernel does (Linux)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the router's to handle.
    with suppress(ImportError, OSError, AttributeError):
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _limit_resources() -> None:
    import resource

    for kind, limit in (
        (resource.RLIMIT_AS, MAX_MEMORY_BYTES),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
    ):
        with suppress(ValueError, OSError):  # Not every system knows every limit.
            resource.setrlimit(kind, (limit, limit))


def _limit_cpu(max_cpu_s: int) -> None:
    """Ends the process by a signal of the kernel's, should nobody kill it."""
    import resource

    used_s = resource.getrusage(resource.RUSAGE_SELF)
    limit_s = int(used_s.ru_utime + used_s.ru_stime) + 1 + max_cpu_s
    resource.setrlimit(resource.RLIMIT_CPU, (limit_s, resource.RLIM_INFINITY))


if __name__ == "__main__":
    main(int(sys.argv[1]))
