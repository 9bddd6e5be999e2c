"""The loaders of a run: opened on first use, and asked together about damaged images."""

from fastsimsiam.config.run import Config
from fastsimsiam.loaders.base import Loader, LoaderOptions
from fastsimsiam.loaders.registry import build_loader
from fastsimsiam.runs.recorder import Recorder
from fastsimsiam.storage.base import Storage
from fastsimsiam.train.auto import Chosen
from fastsimsiam.train.reporter import reporter


class RunLoaders:
    """The loaders of a run, one for each split.

    Attributes:
        passed_over_in_val: kind -> number, of entries of the validation split that are not images.
    """

    def __init__(self, config: Config, chosen: Chosen, recorder: Recorder) -> None:
        """Opens nothing yet; `recorder` is told of long decoding."""
        self._config, self._chosen, self._recorder = config, chosen, recorder
        self._opened: dict[int, Loader] = {}
        self.passed_over_in_val: dict[str, int] = {}

    def open(self, storage: Storage) -> Loader:
        """The loader of a split, the same at each call."""
        if id(storage) not in self._opened:
            config = self._config
            self._opened[id(storage)] = build_loader(
                self._chosen.loader,
                storage,
                LoaderOptions(
                    device=self._chosen.device,
                    workers=config.workers,
                    on_bad_image=config.on_bad_image,
                    gray16_max=config.gray16_max,
                    check_images=config.check_images,
                ),
                cpu=config.cpu,
                dali=config.dali,
                report=reporter(self._recorder, "decoding"),
            )
        return self._opened[id(storage)]

    @property
    def bad_images(self) -> dict[str, str]:
        """Path -> what is wrong with it, of images that were skipped so far."""
        return {
            path: reason
            for loader in self._opened.values()
            for path, reason in loader.bad_images.items()
        }

    @property
    def warned_images(self) -> dict[str, str]:
        """Path -> the decoder's warning, of images that were used so far."""
        return {
            path: text
            for loader in self._opened.values()
            for path, text in loader.warned_images.items()
        }

    def close(self) -> None:
        """Closes all loaders."""
        for loader in self._opened.values():
            loader.close()
