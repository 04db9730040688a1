"""What prompts that attacks found against one model do on others: the matrix of attacks and models, as values."""

from pydantic import Field

from efface.config_files import StrictModel


class Transferred(StrictModel):
    """What the prompts that an attack found against one model do on another."""

    attack: str
    source: str = Field(description="the method whose model they were found against")
    method: str = Field(description="the method whose model they were tried on")
    concept: str
    prompts: int = Field(ge=0)
    judged: int = Field(ge=0, description="images with a verdict")
    shown: int = Field(ge=0, description="images that show the concept")


class Transfers(StrictModel):
    """All of them on one model."""

    rows: tuple[Transferred, ...]
