"""Where feature maps are taken, in words and numbers: plain records shared by capture and store."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Tapped:
    """What a layer's maps are, in words: what tables say of it, and what is recorded beside its fits.

    None where an earlier version did not record it.
    """

    tap: str
    """Where the maps are taken, as ``"after batch_norm (bn1), relu"``."""
    kind: str | None = None
    """Class of the layer, as ``"Conv2d"``; ``"imported"`` of maps from elsewhere."""
    map_shape: str | None = None
    """Extent of a map in pixels, as ``"28x28"``; of other than two dimensions ``"100"`` or ``"4x8x8"``."""

    @property
    def one_pixel(self) -> bool:
        """Whether a map is known to be one number, as in squeeze-and-excitation."""
        return self.map_shape is not None and set(self.map_shape.split("x")) == {"1"}


@dataclass(frozen=True)
class Tap:
    """One layer whose feature maps are analysed."""

    layer: str
    """Dotted name of the convolution."""
    n_filters: int
    height: int
    """Rows of one map, pixels; of a map in three dimensions, of all its slices, one below the other."""
    width: int
    """Columns of one map, pixels."""
    description: str
    """Where the maps are taken, as ``"after batch_norm (bn1), relu"``."""
    kind: str = "Conv2d"
    """Class of the layer."""
    size: str = ""
    """Extent of a map that has not two dimensions, as ``"100"`` or ``"4 × 8 × 8"``."""
    coupled: bool = False
    """The maps of a sample depend on the others in its forward pass."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(filters, height, width)."""
        return self.n_filters, self.height, self.width

    @property
    def map_size(self) -> str:
        """Extent of a map in pixels, as ``"8 × 8"``."""
        return self.size or f"{self.height} × {self.width}"

    @property
    def one_pixel(self) -> bool:
        """Whether a map is one number, as in squeeze-and-excitation: no map of places, and compared with none."""
        return self.height * self.width == 1

    @property
    def tapped(self) -> Tapped:
        """The tap in words."""
        return Tapped(self.description, self.kind, self.map_size.replace(" × ", "x"))


@dataclass(frozen=True)
class Skipped:
    """One layer that is not analysed, and why."""

    layer: str
    reason: str


@dataclass(frozen=True)
class Taps:
    """Every convolution of a model: analysed, or skipped with the reason; both in the order of the model's modules.

    Convolutions that are function calls are skipped ones, at the end.
    """

    tap: str
    """One of :data:`gmmcnn.featuremaps.capture.TAPS`."""
    analysed: tuple[Tap, ...]
    skipped: tuple[Skipped, ...]
    peak_bytes_per_sample: int
    """Largest tensor that the forward pass makes, per sample: what bounds how many samples go through at once."""
    autocast: str | None = None
    """Type that the network is run in where torch holds that for safe: ``bfloat16`` or ``float16``."""
