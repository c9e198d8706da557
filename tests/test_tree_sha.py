"""The digest in two levels: the same for any way of cutting the data, and on any number of threads."""

import hashlib
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from zk0.tree_sha import CHUNK_BYTES, TreeSha

DATA = bytes(range(256)) * (3 * CHUNK_BYTES // 256) + b"the rest"


def wanted(*parts: tuple[bytes, bytes]) -> str:
    sha = hashlib.sha256()
    for title, data in parts:
        sha.update(title)
        for start in range(0, len(data), CHUNK_BYTES):
            sha.update(hashlib.sha256(data[start : start + CHUNK_BYTES]).digest())
    return sha.hexdigest()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, len(DATA)), max_size=6))
def test_how_data_is_cut_does_not_matter(edges):
    cuts = [0, *sorted(edges), len(DATA)]
    with TreeSha() as tree:
        tree.begin(b"first")
        for start, end in pairwise(cuts):
            with tree.taking(DATA[start:end]):
                pass
        tree.begin(b"second")
        with tree.taking(DATA[:7]):
            pass
        assert tree.hexdigest() == wanted((b"first", DATA), (b"second", DATA[:7]))


def test_chunks_that_are_read_are_those_of_the_data():
    with TreeSha() as tree:
        tree.begin(b"first")
        tree.take_chunks(lambda start: DATA[start : start + CHUNK_BYTES], range(0, len(DATA), CHUNK_BYTES))
        tree.begin(b"nothing")
        tree.take_chunks(lambda start: DATA, range(0))
        assert tree.hexdigest() == wanted((b"first", DATA), (b"nothing", b""))


def test_where_a_title_ends_and_data_begins_is_seen():
    assert len({wanted((b"ab", b"c")), wanted((b"a", b"bc")), wanted((b"abc", b""))}) == 3
