"""What `package.json` says: the models of a package, and images that anybody can make again from them."""

from pydantic import Field

from efface.config_files import StrictModel
from efface.models.recipe import Recipe

DESCRIPTION = "package.json"
MANIFEST = "manifest.json"


class Sample(StrictModel):
    """An image that the run made, to be made again."""

    prompt: str
    seed: int
    file: str = Field(description="the image, PNG, relative to the package")
    image_sha256: str = Field(description="of its pixels")


class PackagedModel(StrictModel):
    """One edited model."""

    name: str
    method: str
    concepts: tuple[str, ...]
    delta: str = Field(description="relative to the package")
    folders: dict[str, str] = Field({}, description="diffusers folders by dtype, relative to the package")
    job: dict[str, object] = Field(description="what made it, as JSON")
    seconds: float | None = Field(None, description="of the training")
    device: str | None = None
    sample: Sample | None = None


class Description(StrictModel):
    """The whole of `package.json`."""

    format: int = 1
    campaign: str
    efface: str = Field(description="version")
    efface_source: str = Field("", description="version, and commit or wheel, as far as that was known")
    base: str = Field(description="name or source, as the campaign has it")
    base_id: str = Field(description="the base's fingerprint")
    recipe: Recipe
    judge: str
    licence: str = Field(description="as declared by who made the package")
    problems: tuple[str, ...] = Field((), description="what was missing, failed or damaged of the run")
    models: tuple[PackagedModel, ...]
