"""The engine of the overlap backend: the score of a pair is the number of token ids that its texts share."""

import argparse
import signal
import zlib

from rerankd.backends.worker.compute_lock import ComputeLock
from rerankd.backends.worker.server import Server
from rerankd.errors import InputTooLong

flags = argparse.ArgumentParser()
flags.add_argument("socket")
flags.add_argument("max_length", type=int)
flags.add_argument("scope", help="block: scores are relative to the mean of their block")
flags.add_argument("--careful", action="store_true", help="don't crash at load")
flags.add_argument("--crash-at-load", action="store_true")
flags.add_argument("--crash-on", help="crash on a document with this word", default="")
options = flags.parse_args()


class Overlap:
    """The scorer that the server calls."""

    about, lock, kept, images = "", ComputeLock(), None, None

    def answer(self, inputs, check, *, anew):
        if max(one.tokens for one in inputs) > options.max_length:
            raise InputTooLong(f"a pair has more than {options.max_length} words")
        if any(zlib.crc32(options.crash_on.encode()) >> 1 in one.ids for one in inputs):
            signal.raise_signal(signal.SIGSEGV)
        asked = [{*one.question.before.tolist(), *one.question.ids.tolist()} for one in inputs]
        values = [float(len(query & {*one.ids.tolist()})) for query, one in zip(asked, inputs, strict=True)]
        mean = sum(values) / len(values) * (options.scope == "block")
        return [value - mean for value in values], None


if options.crash_at_load and not options.careful:
    signal.raise_signal(signal.SIGSEGV)
Server(options.socket, Overlap()).serve_forever()
