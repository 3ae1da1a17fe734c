"""The RIB engine: metadata and extras. `make setup` is the usual way to install."""

from pathlib import Path

from setuptools import find_namespace_packages, setup

PACKAGES = ["engine*", "kernels*", "loaders*", "recipes*"]

setup(
    name="rib-engine",
    version="0.1.0",
    description="A high-throughput engine for robust fine-tuning and the ImageNet-RIB benchmark",
    long_description=Path(__file__).with_name("README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    project_urls={
        "Paper": "https://arxiv.org/abs/2410.21582",
        "Project page": "https://jd730.github.io/projects/ImageNet-RIB/",
        "Released code of the benchmark": "https://github.com/FieteLab/ImageNet-RIB",
    },
    keywords=["robustness", "fine-tuning", "ImageNet-RIB", "out-of-distribution", "FFCV", "Triton"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    python_requires=">=3.11",
    packages=find_namespace_packages(include=PACKAGES),
    package_data={
        "engine": [
            "py.typed",
            "campaigns/*.smk",
            "campaigns/schedulers/stand_ins/*",
            "exchange/*.j2",
            "report/templates/*",
        ],
        "kernels": ["py.typed"],
        "loaders": ["py.typed", "benchmarks/*.yaml"],
        "recipes": ["**/*.yaml", "**/*.csv", "*.bib", "*.json", "sets/NOTICE.txt"],
    },
    install_requires=[
        # Upper bounds: the releases that the tests passed with. `make newest` tries later ones.
        "torch>=2.9,<2.16",  # networks, training, fallbacks of the kernels
        "torchvision<0.30",  # timm's transforms
        "timm>=1.0.20,<1.1",  # architectures, weights, transforms
        "deepspeed>=0.18,<0.20",  # training on several ranks
        "filelock>=4.3",  # locks among processes
        "huggingface_hub>=0.30,<3",  # the Hub's classes of model cards
        "jinja2>=3.1",  # the report's page
        "msgspec>=0.19",  # recipes and stored JSON files are checked against their types
        "numba>=0.60",  # optimal transport on CPUs
        "numpy>=1.26",  # packs, metrics
        "pandas>=2",  # tables of the Python API
        "pillow>=11.3",  # images
        "psutil>=5.9",  # memory and processes of the machine
        "pyarrow>=15",  # predictions in Parquet
        "pyyaml>=6",  # recipes
        "resvg_py>=0.2",  # emoji artwork is SVG
        "rich>=13",  # tables in the terminal
        "safetensors>=0.4.5",  # weights
        "scipy>=1.11",  # ranks; the .mat file of ImageNet's development kit
        "shtab>=1.13",  # rib completion
        "snakemake>=9,<10",  # jobs of a campaign
        "tqdm>=4.66",  # progress
        "vl-convert-python>=1.7",  # Vega-Lite: the report's figures
    ],
    extras_require={
        "ffcv": ["ffcv==1.0.2"],  # builds against OpenCV's headers: see the Makefile
        "dinov2": ["onnx>=1.17"],
        "clip": ["open_clip_torch>=3,<4"],  # zero-shot heads for CLIP without an IN-1K stage
        "exact": ["POT>=0.9.5"],  # exact optimal transport, for small sets
        "bench": [  # peers
            "POT>=0.9.5",
            "threadpoolctl>=3.2",
        ],
        "docs": ["zensical>=0.0.70"],
        "slurm": ["snakemake-executor-plugin-slurm>=2.8,<3"],
        "test": [
            "pytest>=8",
            "pytest-cov>=7",  # `make coverage`
            "pytest-xdist>=3.7",
            "POT>=0.9.5",
            "geomloss>=0.3",
            "threadpoolctl>=3.1",
            "open_clip_torch>=3,<4",
            "triton>=3.5,<3.10; platform_system == 'Linux'",
            "hypothesis>=6",
            "jsonschema>=4",
            "import-linter>=2.7",
            "pandas-stubs>=2",
            "ruff>=0.12",
            "pyright>=1.1.400",
            "pre-commit>=3",
            "selenium>=4.20",  # the report in a browser
            "snakemake-executor-plugin-slurm>=2.8,<3",
        ],
    },
    scripts=["engine/rib"],
)
