"""Special tokens, and their spellings as ordinary text, so that a message cannot fake the turns of a conversation."""

import re
from collections.abc import Mapping
from typing import Any

TAG = re.compile(r"[<\[][^<>\[\]\s]+[>\]]$")
# A stand-in for a special token while a template renders is two code points: the first is reserved by Unicode, so that
# no text holds it, and the second, from a private range, tells which special token it is.
RESERVED, STAND_IN = "\ufdd0", 0xF0000


class SpecialTokens:
    """The special tokens of a tokenizer, and their spellings as ordinary text.

    A spelling inside a content is replaced by a stand-in before the chat template renders, and becomes the tokens of
    ordinary text afterwards.

    Args:
        tokenizer: A fast tokenizer with a chat template.
    """

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        template = str(tokenizer.chat_template)
        # Special tokens, and tokens that only the template makes special, such as the tags around reasoning. Not the
        # unknown token, which stands for any word that the vocabulary lacks.
        self.ids = {
            token.content: number
            for number, token in tokenizer.added_tokens_decoder.items()
            if number != tokenizer.unk_token_id
            and (token.special or (TAG.fullmatch(token.content) and token.content in template))
        }
        spellings = sorted(self.ids, key=len, reverse=True)
        self._spelling = re.compile("|".join(map(re.escape, spellings)) or r"(?!)")
        self._stand_ins = {spelling: RESERVED + chr(STAND_IN + i) for i, spelling in enumerate(spellings)}
        self._spelled = {stand_in: spelling for spelling, stand_in in self._stand_ins.items()}
        self._stand_in = re.compile("|".join(self._spelled) or r"(?!)")
        self._id_set = set(self.ids.values())
        self._as_text: dict[str, tuple[int, ...]] = {}

    def hide(self, value: Any) -> Any:
        """Replace the spellings in a value by stand-ins, in strings, lists and names and values of mappings."""
        if isinstance(value, str):
            return self._spelling.sub(lambda match: self._stand_ins[match[0]], value)
        if isinstance(value, Mapping):
            return {self.hide(key): self.hide(item) for key, item in value.items()}
        return [self.hide(item) for item in value] if isinstance(value, list) else value

    def spell(self, text: str, region: tuple[int, int]) -> tuple[str, tuple[int, int], list[tuple[int, int]]]:
        """Put the spellings back into a rendered text.

        Args:
            text: Rendered text with stand-ins.
            region: First character of a region of the text, and the character after its last.

        Returns:
            The text with spellings, the same region in this text, and the regions of the spellings.
        """
        fakes: list[tuple[int, int]] = []
        start, stop = region
        longer = 0  # by how many characters the text has grown so far
        for match in self._stand_in.finditer(text):
            at, spelling = match.start(), self._spelled[match[0]]
            fakes.append((at + longer, at + longer + len(spelling)))
            more = len(spelling) - len(match[0])
            longer += more
            start += more * (at < region[0])
            stop += more * (at < region[1])
        return self._stand_in.sub(lambda match: self._spelled[match[0]], text), (start, stop), fakes

    def tokenize(
        self, text: str, region: tuple[int, int], fakes: list[tuple[int, int]]
    ) -> tuple[tuple[int, ...], list[tuple[int, int]]]:
        """Tokenize a rendered text, in which special tokens inside the region or the fakes are ordinary text.

        Returns:
            Token ids, and for each token its first character and the character after its last.
        """
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids: list[int] = []
        spans: list[tuple[int, int]] = []
        for token, (left, right) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
            own: tuple[int, ...] = (token,)
            span = (left, right)
            if token in self._id_set:
                if region[0] <= left < right <= region[1] or any(left < end and right > start for start, end in fakes):
                    own = self.ordinary(text[left:right])
                else:
                    span = (right, right)  # a mark of the template, even if it includes spaces of a content
            ids += own
            spans += [span] * len(own)
        return tuple(ids), spans

    def ordinary(self, spelling: str) -> tuple[int, ...]:
        """Tokenize a special token's spelling as ordinary text."""
        if spelling not in self._as_text:
            ids = self.tokenizer(spelling, add_special_tokens=False, split_special_tokens=True)["input_ids"]
            if set(ids) & self._id_set:
                # Only the template makes it special, or it is a word of the vocabulary: split it into characters.
                ids = [i for char in spelling for i in self.tokenizer(char, add_special_tokens=False)["input_ids"]]
            self._as_text[spelling] = tuple(ids)
        return self._as_text[spelling]
