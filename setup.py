"""Metadata and packages of efface. The packages at the root are packaged through the links in `efface/`."""

from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="efface",
    version="0.1.0",
    description="Makes text-to-image diffusion models forget named concepts, and proves what was forgotten and kept",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=["efface", "efface.*"]),
    package_data={
        "efface": [
            "configs/**/*.yaml",
            "configs/**/*.json",
            "configs/**/*.txt",
            "concepts/data/*",
            "miniature/model/**/*",
            "miniature/judge/*",
            "miniature/*.md",
            "miniature/*.json",
            "cluster/deploy/**/*",
            "launch/submit/templates/**/*",
            "eval/report/templates/*",
            "cluster/package/templates/*",
            "eval/published_scores/*.csv",
        ]
    },
    # Each bound is a release with which tests/test_wheel.py runs the demo. Where one has a reason, releases before it
    # seem to work and do not.
    install_requires=[
        "torch>=2.10",
        "diffusers>=0.40",  # its models take `dtype`; before, every base failed to load
        "transformers>=5.18",  # reads images without torchvision, and text encoders by new names and old (from 5.6)
        "tokenizers>=0.23.1",
        "accelerate>=1.10",
        "deepspeed>=0.19.8",  # a second job in the same process trains; before, its process group was unknown
        "ray[default]>=2.58",  # takes port 0 for the agent of runtime environments, as the SLURM scripts give
        "aiohttp>=3.14.1",
        "requests>=2.31",
        "safetensors>=0.8",
        "pydantic>=2.8",
        "omegaconf>=2.3",
        "pyyaml>=6.0.1",
        "typer>=0.18",  # refuses a missing argument under today's click; before, it was passed on as None
        "rich>=14.3",  # a progress bar that is not shown prints nothing; before, an empty line
        "pyarrow>=17",
        "pillow>=10.1",  # its own font comes in sizes
        "numpy>=1.26",
        "universal-pathlib>=0.3.5",  # its paths of stores can be subclassed
        "fsspec>=2024.12",  # creates an object where there is none; before, what was there was replaced
        "jinja2>=3.1",
        "plotly>=6",  # its script is what draws the figures of a report
        "filelock>=3.12",
        "psutil>=6",
        "packaging>=24.2",
        "huggingface_hub>=1.31",
    ],
    extras_require={
        "xformers": ["xformers>=0.0.34"],
        "s3": ["s3fs>=2024.12", "botocore>1.35.20"],  # as fsspec: leases are objects that are created once
        "search": ["optuna>=5"],
        "train": ["ray[train]>=2.58"],
        "quality": ["torchmetrics>=1.9"],  # FID and KID
        "nsfw": ["nudenet>=3.4.2"],  # judges nudity; the wheel brings its weights
        "curves": ["tensorboard>=2.17.1"],  # goes with numpy 2
        "docs": ["mkdocs-material>=9.6", "nbclient>=0.10", "ipykernel>=6.29"],  # the latter execute its notebooks
        "dev": [
            "efface[s3,search,train,curves,nsfw,quality,docs]",
            "moto[server,s3]>=5.1",
            "promql-parser>=0.5",
            "playwright>=1.50",  # reports are tested in a browser
            "jsonschema>=4",
            "pytest>=8",
            "pytest-xdist>=3.6",
            "hypothesis>=6.100",
            "ruff>=0.12",
            "mypy>=1.15",
            "import-linter>=2.3",
        ],
    },
    entry_points={"console_scripts": ["efface = efface.__main__:main"]},
)
