"""Metadata and packages of efface. The rooms at the root are packaged through the links in `efface/`."""

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
            "launch/slurm/*",
        ]
    },
    install_requires=[
        "torch>=2.10",
        "diffusers>=0.36",
        "transformers>=4.56",
        "accelerate>=1.10",
        "deepspeed>=0.18",
        "ray[default]>=2.52",
        "safetensors>=0.6",
        "pydantic>=2.8",
        "omegaconf>=2.3",
        "typer>=0.15",
        "rich>=13",
        "pyarrow>=17",
        "pillow>=10",
        "numpy>=1.26",
        "universal-pathlib>=0.3",
        "jinja2>=3.1",
        "filelock>=3.12",
        "psutil>=5.9",
        "packaging>=23",
        "huggingface_hub>=0.30",
    ],
    extras_require={
        "xformers": ["xformers>=0.0.34"],
        "s3": ["s3fs>=2024.10", "botocore>1.35.20"],
        "search": ["ray[tune]>=2.52", "optuna>=4"],
        "train": ["ray[train]>=2.52"],
        "curves": ["tensorboard>=2.15"],
        "dev": [
            "efface[s3,search,train,curves]",
            "moto[server,s3]>=5.1",
            "promql-parser>=0.5",
            "jsonschema>=4",
            "pytest>=8",
            "pytest-xdist>=3.6",
            "hypothesis>=6.100",
            "ruff>=0.12",
            "mypy>=1.15",
            "import-linter>=2.3",
        ],
    },
    entry_points={"console_scripts": ["efface = efface.launch.cli:main"]},
)
