"""Downloads Imagewoof (10 similar dog breeds of ImageNet) to DEST/train and DEST/val.

Needs only the standard library. Published by fast.ai in the original size and resized to
320 and 160 pixels on the shorter side; all three hold the same images.
"""

from _archive import Source, arguments, install, run

BASE = "https://s3.amazonaws.com/fast-ai-imageclas/"
SPLITS = {"train": (10, 9_025), "val": (10, 3_929)}
# fast.ai has repacked its archives more than once, and its list (checks.txt) is outdated. Other
# projects list these MD5s together with the Imagenette MD5s that torchvision uses. If they change
# again, --no-verify still checks the numbers of classes and images.
SOURCES = {
    "full": Source(f"{BASE}imagewoof2.tgz", "9aafe18bcdb1632c4249a76c458465ba", SPLITS),
    "320": Source(f"{BASE}imagewoof2-320.tgz", "0f46d997ec2264e97609196c95897a44", SPLITS),
    "160": Source(f"{BASE}imagewoof2-160.tgz", "3d200a7be99704a0d7509be2a9fbfe15", SPLITS),
}


def main() -> None:
    """Runs the command line."""
    parser = arguments(__doc__, "data/imagewoof")
    parser.add_argument(
        "--size", choices=list(SOURCES), default="full", help="default: %(default)s"
    )
    args = parser.parse_args()
    install(SOURCES[args.size], args.dest, url=args.url, archive=args.archive, verify=args.verify)


if __name__ == "__main__":
    raise SystemExit(run(main))
