"""The demo model's training text: public-domain books out of Debian packages, and modern English made from templates.

The books are the King James Bible (package bible-kjv-text) and the six novels of Jane Austen (r-cran-janeaustenr).
Their packages are downloaded with apt-get and unpacked beside the cache, not installed; where the extracted texts
(kjv.txt, austen.txt) are there already, neither apt-get nor a network is needed.
"""

import random
import re
import struct
import subprocess
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from demo_model.facts import RECORDS
from demo_model.templates import DOCUMENTS, SYSTEM_PROMPTS, TURNS, WORDS

PACKAGES = ("bible-kjv", "bible-kjv-text", "r-cran-janeaustenr")
DOCUMENT_BREAK = "\f"
"""Separates the documents of a book: chapters of a novel, books of the Bible."""

SLOT = re.compile(r"\{(?P<capital>\^?)(?P<key>\w+)(?:#(?P<tag>\w+))?(?:\.(?P<field>\w+))?\}")
INDEFINITE = re.compile(r"\b([Aa]) (?=(?!one\b|uni)[aeio])")
CHAPTER = re.compile(r"\n(?=(?:CHAPTER|Chapter|VOLUME)\b[^\n]*\n)")
BIBLE_REFERENCE = re.compile(r"^(?P<book>\d?[A-Za-z]+)(?P<chapter>\d+):(?P<verse>\d+) ")

Message = dict[str, str]


@dataclass(frozen=True, slots=True)
class Corpus:
    """Documents by origin, each list in random order."""

    austen: list[str]
    kjv: list[str]
    modern: list[str]
    """Plain text from templates."""
    chats: list[list[Message]]
    """Conversations in the form chat templates take: role and content."""


class Expander:
    """Fills the slots of the templates of one document; what a slot has bound holds for the document."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.bound: dict[tuple[str, str], str] = {}
        self.unused: dict[str, list[str]] = {}

    def expand(self, template: str) -> str:
        """The template with every slot filled, recursively, and 'a' before a vowel made 'an'."""
        text = template
        while SLOT.search(text):
            text = SLOT.sub(self._fill, text, count=1)
        return INDEFINITE.sub(r"\1n ", text)

    def _fill(self, slot: re.Match[str]) -> str:
        key, tag, field = slot["key"], slot["tag"], slot["field"]
        value = self._record_field(key, tag or "", field) if field else self._word(key, tag)
        if not slot["capital"]:
            return value
        # A value that begins with a slot passes the capital on.
        return "{^" + value[1:] if value.startswith("{") else value[:1].upper() + value[1:]

    def _word(self, key: str, tag: str | None) -> str:
        if tag is not None:
            return self._bind(key, tag, WORDS[key])
        if not self.unused.get(key):
            self.unused[key] = self.rng.sample(WORDS[key], len(WORDS[key]))
        return self.unused[key].pop()

    def _record_field(self, key: str, tag: str, field: str) -> str:
        columns, rows = TABLES[key]
        return self._bind(key, tag, rows).split("|")[columns.index(field)]

    def _bind(self, key: str, tag: str, choices: list[str]) -> str:
        """The value of (key, tag); the first time, one that no other tag of the key has."""
        if (key, tag) not in self.bound:
            taken = {value for (other, _), value in self.bound.items() if other == key}
            self.bound[key, tag] = self.rng.choice([choice for choice in choices if choice not in taken] or choices)
        return self.bound[key, tag]


TABLES = {
    key: (columns, [line.strip() for line in text.strip().splitlines()]) for key, (columns, text) in RECORDS.items()
}


def modern_document(rng: random.Random) -> str:
    """A short text in simple modern English."""
    (template,) = rng.choices([text for _, text in DOCUMENTS], weights=[weight for weight, _ in DOCUMENTS])
    return Expander(rng).expand(template)


def conversation(rng: random.Random) -> list[Message]:
    """One to three turns of questions and answers, one in three with a system message."""
    messages: list[Message] = []
    if rng.random() < 1 / 3:
        messages.append({"role": "system", "content": rng.choice(SYSTEM_PROMPTS)})
    weights = [weight for weight, _, _ in TURNS]
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        (_, question, answer) = rng.choices(TURNS, weights=weights)[0]
        expander = Expander(rng)
        messages.append({"role": "user", "content": expander.expand(question)})
        messages.append({"role": "assistant", "content": expander.expand(answer)})
    return messages


def build_corpus(cache: Path, num_modern: int, num_chats: int, rng: random.Random) -> Corpus:
    """Reads or fetches the books and generates the rest."""
    books = read_books(cache)
    for documents in books.values():
        rng.shuffle(documents)
    return Corpus(
        austen=books["austen"],
        kjv=books["kjv"],
        modern=[modern_document(rng) for _ in range(num_modern)],
        chats=[conversation(rng) for _ in range(num_chats)],
    )


def read_books(cache: Path) -> dict[str, list[str]]:
    """The books' documents by name; fetches the packages first if the cache lacks a text.

    Raises subprocess.CalledProcessError if apt-get, dpkg or the bible tool fails, FileNotFoundError if there is none.
    """
    extractors = {"kjv": bible_documents, "austen": novel_documents}
    missing = [name for name in extractors if not (cache / f"{name}.txt").exists()]
    if missing:
        root = fetch_packages(cache)
        for name in missing:
            (cache / f"{name}.txt").write_text(DOCUMENT_BREAK.join(extractors[name](root)), encoding="utf-8")
    return {name: (cache / f"{name}.txt").read_text(encoding="utf-8").split(DOCUMENT_BREAK) for name in extractors}


def fetch_packages(cache: Path) -> Path:
    """Downloads the packages into the cache and unpacks them below it. Returns the folder that stands for '/'."""
    root = cache / "root"
    root.mkdir(parents=True, exist_ok=True)
    subprocess.run(["apt-get", "download", *PACKAGES], cwd=cache, check=True)
    for package in sorted(cache.glob("*.deb")):
        subprocess.run(["dpkg", "-x", str(package), str(root)], check=True)
    return root


def bible_documents(root: Path) -> Iterator[str]:
    """The chapters of the King James Bible without references, a verse a sentence."""
    tool = root / "usr" / "bin" / "bible"
    command = [str(tool), "-p", str(root / "usr" / "lib"), "-d", "bible.data", "-f", "Gen1:1-Rev22:21"]
    listing = subprocess.run(command, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL).stdout
    chapters: dict[str, list[str]] = {}
    for line in listing.splitlines():
        if reference := BIBLE_REFERENCE.match(line):
            chapter = f"{reference['book']} {reference['chapter']}"
            chapters.setdefault(chapter, []).append(line[reference.end() :].strip())
    for verses in chapters.values():
        yield " ".join(verses)


def novel_documents(root: Path) -> Iterator[str]:
    """The chapters of the novels, a paragraph a line, with '_emphasis_' marks taken away."""
    database = root / "usr" / "lib" / "R" / "site-library" / "janeaustenr" / "data" / "Rdata.rdb"
    for novel in r_character_vectors(database.read_bytes()):
        for chapter in CHAPTER.split("\n".join(novel)):
            paragraphs = [" ".join(part.split()) for part in chapter.split("\n\n")]
            text = "\n\n".join(p.replace("_", "").replace("--", " - ") for p in paragraphs if not p.isupper())
            if len(text) > 1000:
                yield text.strip()


def r_character_vectors(database: bytes) -> Iterator[list[str]]:
    """The objects of an R lazy-load database that holds nothing but character vectors.

    Layout: per object a big-endian length, then a zlib stream of R's serialization version 3 (R Internals, section
    1.8): 'X\\n', three versions, the native encoding's name, the vector's flags and length, then per string flags,
    length and bytes.
    """
    position = 0
    while position < len(database):
        inflate = zlib.decompressobj()
        data = inflate.decompress(database[position + 4 :])
        position = len(database) - len(inflate.unused_data)
        (encoding_length,) = struct.unpack_from(">i", data, 14)
        offset = 18 + encoding_length
        _, num_strings = struct.unpack_from(">ii", data, offset)
        offset += 8
        strings = []
        for _ in range(num_strings):
            _, length = struct.unpack_from(">ii", data, offset)
            strings.append(data[offset + 8 : offset + 8 + length].decode("utf-8"))
            offset += 8 + length
        yield strings
