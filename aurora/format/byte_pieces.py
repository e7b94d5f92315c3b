"""What each token of a Hugging Face tokeniser spells, in bytes: for previews, and for the tokens that Chinese takes."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def byte_letters() -> dict[str, int]:
    """The letter by which GPT-2's byte-level vocabularies write each byte (openai/gpt-2, bytes_to_unicode)."""
    printed = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printed]
    return {chr(byte): byte for byte in printed} | {chr(256 + place): byte for place, byte in enumerate(others)}


class BytePieces:
    """The bytes of every token, byte-level or with sentencepiece's sign for a space and byte tokens."""

    def __init__(self, tokenizer: "Tokenizer") -> None:
        letters, level = byte_letters(), "ByteLevel" in str(tokenizer.decoder)
        added = tokenizer.get_added_tokens_decoder()
        self.control = {index for index, token in added.items() if token.special}
        self.bytes = [b""] * tokenizer.get_vocab_size()
        for piece, index in tokenizer.get_vocab().items():
            if index in added:
                self.bytes[index] = piece.encode()
            elif level:
                self.bytes[index] = bytes(letters[letter] for letter in piece if letter in letters)
            elif len(piece) == 6 and piece.startswith("<0x"):
                self.bytes[index] = bytes.fromhex(piece[3:5])
            else:
                self.bytes[index] = piece.replace("▁", " ").encode()

    def spell(self, ids: Sequence[int]) -> Iterator[tuple[str, list[int], bool]]:
        """Text, ids and whether it is a control token; tokens that spell a character together are one text."""
        raw, held = b"", []
        for index in ids:
            if index in self.control and held:
                yield raw.decode(errors="replace"), held, False
                raw, held = b"", []
            raw, held = raw + self.bytes[index], [*held, index]
            try:
                text = raw.decode()
            except UnicodeDecodeError:
                continue
            yield text, held, index in self.control
            raw, held = b"", []
        if held:
            yield raw.decode(errors="replace"), held, False


class ByteCost:
    """How many tokens a vocabulary spends on Chinese characters, U+4E00 to U+9FFF, which are three bytes each."""

    def __init__(self, pieces: BytePieces) -> None:
        self.lengths = numpy.array([len(piece) for piece in pieces.bytes], dtype=numpy.int64)
        self.starts = numpy.cumsum(self.lengths) - self.lengths
        self.letters = numpy.frombuffer(b"".join(pieces.bytes), dtype=numpy.uint8)

    def count(self, ids: numpy.ndarray, codes: numpy.ndarray, sources: int) -> numpy.ndarray:
        """(S, 3) int64: the CHINESE counts of each source, in (T,) tokens whose source is codes (T,).

        A token counts if it holds a byte of such a character, be it that of two.
        """
        lengths = self.lengths[ids]
        token = numpy.repeat(numpy.arange(len(ids)), lengths)  # of each byte
        inside = numpy.arange(len(token)) - numpy.repeat(numpy.cumsum(lengths) - lengths, lengths)
        text = self.letters[self.starts[ids][token] + inside]
        first = numpy.flatnonzero((text[:-2] >= 0xE4) & (text[:-2] <= 0xE9))
        first = first[(text[first] > 0xE4) | (text[first + 1] >= 0xB8)]
        characters, last = token[first], token[first + 2]
        held = numpy.zeros(len(ids), dtype=bool)
        for place in range(3):
            held[token[first + place]] = True

        def by_source(tokens: numpy.ndarray) -> numpy.ndarray:
            return numpy.bincount(codes[tokens], minlength=sources)

        return numpy.stack(
            [by_source(characters), by_source(characters[characters != last]), by_source(numpy.flatnonzero(held))],
            axis=1,
        )
