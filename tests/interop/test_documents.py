"""The documents as a whole: links lead somewhere, and words are spelled as words."""

import re
import subprocess
import unicodedata

from gatewaylab import PATIENCE, ROOT

# Words of Rust and its crates, of HTTP and of the sources, and misspelled names in tests of the suggestions for them.
RIGHT = ["keypair", "crate", "nd", "te", "atleast", "levle", "bakend", "inflight"]

PAGES = [
    *ROOT.glob("*.md"),
    *(ROOT / "docs").glob("**/*.md"),
    *(ROOT / "examples").glob("**/*.md"),
    ROOT / "clients/js/README.md",
]


def without_code(text):
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`", "", text)


def anchors(page):
    """The names of a page's headings, as code hosts make them."""
    found = set()
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE):
        heading = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").strip().lower()
        kept = (sign for sign in heading if sign in " -_" or unicodedata.category(sign)[0] in "LN")
        name = "".join(kept).replace(" ", "-")
        number = 1
        while name in found:
            name, number = f"{name.rsplit('-', 1)[0] if number > 1 else name}-{number}", number + 1
        found.add(name)
    return found


def test_links_lead_somewhere():
    """Every link to a file of the project, with its heading; links elsewhere are not asked for."""
    wrong, count = [], 0
    for page in PAGES:
        for link in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text())):
            if re.match(r"[a-z]+:", link):
                continue
            count += 1
            name, _, anchor = link.partition("#")
            target = (page.parent / name).resolve() if name else page
            if not target.exists():
                wrong.append(f"{page.relative_to(ROOT)}: {link}: no such file")
            elif anchor and target.suffix == ".md" and anchor not in anchors(target):
                wrong.append(f"{page.relative_to(ROOT)}: {link}: no such heading")
    assert count > 100
    assert wrong == []


def test_words_are_spelled_right():
    """codespell knows common mistakes, and reports no word that it does not know."""
    done = subprocess.run(
        ["codespell", "--ignore-words-list", ",".join(RIGHT), *PAGES, ROOT / "config.toml", ROOT / "src", ROOT / "contrib"],
        capture_output=True,
        text=True,
        timeout=4 * PATIENCE,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stdout
