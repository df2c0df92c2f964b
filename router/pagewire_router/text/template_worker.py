"""The process that renders templates which clients send. template_process.py starts it and asks it.

A template is a program, and the sandbox bounds neither its time nor its memory: `9 ** 9 ** 9` alone never ends. The
router kills the process when a template takes too long. The process limits itself too, after its imports and before it
reads anything.

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
"""First byte that the process writes: it is ready."""
TEXT = b"T"
"""First byte of an answer: the rest is the rendered text."""
REFUSED = b"E"
"""First byte of an answer: the rest says why there is no text."""
TOO_LONG = b"L"
"""First byte of an answer: the text would be too long, and the rest says so."""
LENGTH_BYTES = 4
MAX_MEMORY_BYTES = 512 * 1024 * 1024
"""Limit of the address space, of which Python itself takes some 100 MB."""
NICENESS = 10
"""Priority of the process: the router comes first where cores are short."""
_PR_SET_PDEATHSIG = 1


def main(max_cpu_s: int) -> None:
    """Answers requests until standard input ends. max_cpu_s: CPU time for each request."""
    template_environment().from_string("{{ messages }}")  # Loads what Jinja imports on first use.
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
    """Asks Linux to kill this process with its parent: a busy template would not see that standard input has ended."""
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
    """Has the kernel end the process after this CPU time, in case the router does not."""
    import resource

    used_s = resource.getrusage(resource.RUSAGE_SELF)
    limit_s = int(used_s.ru_utime + used_s.ru_stime) + 1 + max_cpu_s
    resource.setrlimit(resource.RLIMIT_CPU, (limit_s, resource.RLIM_INFINITY))


if __name__ == "__main__":
    main(int(sys.argv[1]))
