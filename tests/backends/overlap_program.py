"""The child of the overlap backend: a word is a token, and the words of documents are kept."""

import argparse
import re
import signal

from rerankd.backends.worker.scorer import TextTooLong
from rerankd.backends.worker.server import Server

flags = argparse.ArgumentParser()
flags.add_argument("socket")
flags.add_argument("max_length", type=int)
flags.add_argument("scope", help="block: a value is relative to the mean of its block")
flags.add_argument("--careful", action="store_true", help="don't crash at load")
flags.add_argument("--crash-at-load", action="store_true")
flags.add_argument("--crash-on", help="crash on a document with this word")
options = flags.parse_args()


class Overlap:
    """What the server asks of a scorer, its vocabulary and its runner."""

    def __init__(self):
        self.vocabulary = self.runner = self
        self.kept = {}

    def info(self):
        return {"about": "", "around_pair": 1, "around_text": 1}

    def steps(self, after, within_s):
        return after + 1

    def ids(self, texts):
        return [re.findall(r"\w+|[^\w\s]", text.lower()) for text in texts]

    def score(self, query, texts, wait):
        (asked,) = self.ids([query])
        new = [text for text in texts if text not in self.kept]
        self.kept |= zip(new, self.ids(new), strict=True)
        block = [self.kept[text] for text in texts]
        if any(len(asked) + len(words) + 1 > options.max_length for words in block):
            raise TextTooLong(f"a pair has more than {options.max_length} words")
        if any(options.crash_on in words for words in block):
            signal.raise_signal(signal.SIGSEGV)
        values = [float(len({*asked} & {*words})) for words in block]
        mean = sum(values) / len(values) if options.scope == "block" else 0
        return [value - mean for value in values], len(asked) + 1 + sum(len(self.kept[text]) for text in new)


if options.crash_at_load and not options.careful:
    signal.raise_signal(signal.SIGSEGV)
Server(options.socket, Overlap()).serve_forever()
