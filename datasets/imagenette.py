"""Downloads Imagenette (10 easily classified classes of ImageNet) to DEST/train and DEST/val.

Needs only the standard library. Published by fast.ai in the original size and resized to
320 and 160 pixels on the shorter side; all three hold the same images.
"""

from _archive import Source, arguments, install, run

BASE = "https://s3.amazonaws.com/fast-ai-imageclas/"
SPLITS = {"train": (10, 9_469), "val": (10, 3_925)}
SOURCES = {
    "full": Source(f"{BASE}imagenette2.tgz", "fe2fc210e6bb7c5664d602c3cd71e612", SPLITS),
    "320": Source(f"{BASE}imagenette2-320.tgz", "3df6f0d01a2c9592104656642f5e78a3", SPLITS),
    "160": Source(f"{BASE}imagenette2-160.tgz", "e793b78cc4c9e9a4ccc0c1155377a412", SPLITS),
}


def main() -> None:
    """Runs the command line."""
    parser = arguments(__doc__, "data/imagenette")
    parser.add_argument(
        "--size", choices=list(SOURCES), default="full", help="default: %(default)s"
    )
    args = parser.parse_args()
    install(SOURCES[args.size], args.dest, url=args.url, archive=args.archive, verify=args.verify)


if __name__ == "__main__":
    raise SystemExit(run(main))
