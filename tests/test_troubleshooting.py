"""The manual's page of troubles has every sentence of an error or warning, and no other."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
ROW = re.compile(r"^\| (`.*?`) \| ", re.MULTILINE)  # its first cell: sentences, with … for what differs
SENTENCE = re.compile(r"(`+) ?(.+?) ?\1(?!`)")
WORDS = re.compile(r"\w+\W+\w+")
HIDDEN = {
    "… has fields in no group: …": "a mistake in this package, which its tests find",
    "The SAE … …": "the sentence of an UnusableSAEError, which is on the page",
}
WRAPPERS = {  # functions that complete a sentence
    "loading": "{} cannot be loaded: ….",
    "reading": "{} cannot be read (…): ….",
    "without_extra": "{} needs …: install the extra `…`, as in pip install '.[…]'.",
}


def template(node: ast.expr) -> str | None:
    """Return an expression's text with … for values that are known only in a run; None if it is no text."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(template(part) or "…" for part in parts)
    return None


def sentence_of(call: ast.Call) -> str | None:
    """Return the sentence of a call that makes an error or logs a warning; None for any other call."""
    name = ast.unparse(call.func)
    if not name.endswith(("Error", "Exception", "logger.warning", *WRAPPERS)):
        return None
    texts = [re.sub(r"%[.\d]*[sdfg]", "…", template(argument) or "") for argument in call.args]
    texts = [text for text in texts if WORDS.search(text)]
    if not texts:
        return None
    if name == "UnusableSAEError":
        return f"The SAE … {texts[-1]}"
    return WRAPPERS.get(name, "{}").format(texts[0 if name in WRAPPERS else -1])


def code() -> tuple[dict[str, str], set[str]]:
    """Return each sentence of an error or warning with its place, and every text in the code."""
    sentences, texts = {}, set()
    for folder in ("src", "modeling"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text())):
                texts.add(template(node))
                if isinstance(node, ast.Call) and (sentence := sentence_of(node)):
                    sentences[sentence] = f"{file.relative_to(ROOT)}, line {node.lineno}"
    return sentences, (texts | sentences.keys()) - {None}


def patterns() -> dict[str, re.Pattern[str]]:
    """Return the page's sentences, each with the pattern that finds it in the code."""
    told = [sentence for cell in ROW.findall(PAGE) for _, sentence in SENTENCE.findall(cell)]
    return {
        sentence: re.compile(".*".join(re.escape(part.strip()) for part in sentence.split("…"))) for sentence in told
    }


def test_every_sentence_of_the_code_is_on_the_page():
    found = patterns().values()
    missing = {
        sentence: place
        for sentence, place in code()[0].items()
        if not (sentence in HIDDEN or any(pattern.search(sentence) for pattern in found))
    }
    assert not missing, f"docs/troubleshooting.md lacks {missing}"


def test_every_sentence_of_the_page_is_in_the_code():
    texts = code()[1]
    gone = [told for told, pattern in patterns().items() if not any(map(pattern.search, texts))]
    assert not gone, f"no code says {gone}"


def test_no_sentence_of_the_page_stands_for_any_sentence():
    assert not [told for told in patterns() if not any(map(WORDS.search, told.split("…")))]
