"""The command `data`: arguments and help. Imports nothing heavy at its top."""

from pathlib import Path

from lit_mnist.errors import UsageError
from lit_mnist.terminal import Parser


def data(arguments: list[str]) -> None:
    """Fetch, verify or locate the datasets."""
    from lit_mnist.data.datasets import DOWNLOADS, PAPER_DATASETS

    parser = Parser("lit-mnist data", description="Download, check and locate the datasets.")
    # Names and help come from the registry: a new dataset needs no change here.
    verbs = parser.add_subparsers(dest="verb", required=True)
    fetch = verbs.add_parser("fetch", help="download what is missing, once, with checksums")
    fetch.add_argument(
        "--dataset", choices=(*DOWNLOADS, "all"), help=f"which to get (default: {' and '.join(PAPER_DATASETS)})"
    )
    fetch.add_argument(
        "--mirror", help="URL of a folder with the files of --dataset as NAME.gz, used instead of the public ones"
    )
    for verb, what in (("verify", "check every file's checksum"), ("where", "which folder each comes from")):
        verbs.add_parser(verb, help=what)
    for sub in verbs.choices.values():
        # The same option for all three, so that `verify` and `where` look where `fetch` has put the files.
        sub.add_argument("--root", help="folder of the datasets (default: LIT_MNIST_DATA, or ./data)")
    known = parser.parse_args(arguments)
    # Imported late, so that `--help` and argument errors do not wait for numpy.
    from lit_mnist.data import download
    from lit_mnist.data.locate import default_root

    if known.verb == "fetch":
        if known.mirror and known.dataset in (None, "all"):
            raise UsageError("--mirror is the URL of one dataset's files: say which with --dataset")
        root = Path(known.root).expanduser() if known.root else default_root()
        chosen = {None: PAPER_DATASETS, "all": tuple(DOWNLOADS)}.get(known.dataset, (known.dataset,))
        download.fetch(chosen, root, known.mirror)
    elif known.verb == "verify":
        download.verify(DOWNLOADS, known.root)
    else:
        download.where(known.root)
