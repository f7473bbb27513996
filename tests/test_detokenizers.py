import re

import pytest

from unnoise.shared.data import characters, subwords, train_tokenizer
from unnoise.shared.data.detokenizers import DETOKENIZERS, detokenizer, of_corpus
from unnoise.shared.errors import UsageError


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("wikitext", "the 1 @,@ 000 @-@ page book , 2 @.@ 5 cm", "the 1,000-page book, 2.5 cm"),
        ("wikitext", "here : a ; b . c ! d ? e", "here: a; b. c! d? e"),
        ("wikitext", '( a ) [ b ] { c } " d "', '(a) [b] {c} "d"'),
        ("wikitext", " \n = = Title = = \n text", "\n== Title ==\ntext"),
        ("wikitext", "the dog 's N bones", "the dog's 1 bones"),
        (
            "wikitext",
            "the dogs ' bones ' end",
            "the dogs'bones' end",
        ),  # the pair of apostrophes is taken for a quotation
        ("wikitext", "20 \N{DEGREE SIGN} C", "20\N{DEGREE SIGN}C"),
        ("ptb", "mr. <unk> is n't N N N years", "mr. ? isn't 1 1 1 years"),
        ("ptb", "the firms ' $ N billion # N", "the firms' $1 billion # N"),
        ("ptb", "one 's and\\/or \n two", "one's and/or\ntwo"),
        ("lm1b", "He 's there , at http : / / a / b .", "He's there, at http://a/b."),
        ("lm1b", 'She said " yes ! " ( twice ) ?', 'She said "yes!" (twice)?'),
        (
            "lm1b",
            "It cost $ 5 . That is \N{POUND SIGN} 4 ; no : really .",
            "It cost $5. That is \N{POUND SIGN}4; no: really.",
        ),
        ("lm1b", "[ a ] ' b ' end !", "[a] 'b' end!"),
        ("lambada", " \N{LEFT DOUBLE QUOTATION MARK}so\N{RIGHT DOUBLE QUOTATION MARK} he said \n", '\n"so" he said'),
        ("ag_news", "Reuters - a , b .", "Reuters - a , b ."),
        ("scientific_papers", "we use @-@ x , as ( a ) / b 'll", "we use-x, as (a)/b'll"),
        ("scientific_papers", "in a N .", "in a 1."),  # WikiText's rules come first
        ("none", " a , b ", " a , b "),
    ],
)
def test_rules(name, before, after):
    assert DETOKENIZERS[name](before) == after


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("Salesforce/wikitext", ("Salesforce/wikitext", "wikitext")),
        ("data/penn/valid.txt", ("data/penn/valid.txt", "ptb")),
        ("lm1b", ("lm1b", "lm1b")),
        ("my.txt", ("my.txt", "none")),
        ("none:ptb.txt", ("ptb.txt", "none")),
        ("ptb:my.txt", ("my.txt", "ptb")),
        ("C:my.txt", ("C:my.txt", "none")),
    ],
)
def test_the_detokenizer_of_a_corpus(given, found):
    assert of_corpus(given) == found


@pytest.mark.parametrize(("name", "remedy"), [("wikitxt", "did you mean wikitext"), ("xyz", "choose from none, wiki")])
def test_unknown_detokenizers_are_refused_in_one_line(name, remedy):
    for attempt in (lambda: detokenizer(name), lambda: of_corpus(f"{name}:my.txt")):
        with pytest.raises(UsageError, match=f"there is no detokenizer {name}: {remedy}") as error:
            attempt()
        assert re.fullmatch(".*", str(error.value))


def test_text_is_read_through_a_detokenizer(tmp_path):
    path = tmp_path / "my.txt"
    path.write_text("he is n't <unk> ,\n" * 20)
    plain, changed = (characters(str(path), "train", 8, detokenizer=name) for name in ("none", "ptb"))
    assert "".join(plain.decode(plain.windows[:3])).startswith("he is n t unk he")
    assert "".join(changed.decode(changed.windows[:3])).startswith("he isn t he isn")
    tokenizer = train_tokenizer(["he isn't there"] * 3, 260)
    data = subwords(str(path), "train", 8, tokenizer, documents="lines", detokenizer="ptb")
    assert data.words == 20 * 5  # he, isn't, ?, the comma and the end of the line
    assert data.characters == 20 * len("he isn't ? ,")
    with pytest.raises(UsageError, match="no detokenizer xyz"):
        characters(str(path), "train", 8, detokenizer="xyz")
