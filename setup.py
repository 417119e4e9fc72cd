"""The package's metadata, read from settings.ini with the standard library (no pkg_resources, no nbdev)."""
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

parser = ConfigParser(delimiters=["="])
parser.read_string((Path(__file__).parent / "settings.ini").read_text(encoding="utf-8"))
cfg = parser["DEFAULT"]

STATUS = {"1": "1 - Planning", "2": "2 - Pre-Alpha", "3": "3 - Alpha", "4": "4 - Beta", "5": "5 - Production/Stable"}
PYTHONS = [f"3.{minor}" for minor in range(int(cfg["min_python"].split(".")[1]), 14)]

ENDING = "_requirements"
extras = {key.removesuffix(ENDING): cfg[key].split() for key in cfg if key.endswith(ENDING)}
USED = ("course", "export", "hub", "demo", "serve", "video", "supervision", "tensorboard")  # what only some users need
extras["all"] = sorted({name for extra in USED for name in extras[extra]})
extras["dev"] += extras["all"]  # the tests run all of it

# name, license, readme and requires-python stand in pyproject.toml, where they may not be repeated here.
setup(
    version=cfg["version"],
    description=cfg["description"],
    keywords=cfg["keywords"].split(),
    author=cfg["author"],
    author_email=cfg["author_email"],
    project_urls={"Repository": cfg["git_url"], "Documentation": cfg["doc_host"] + cfg["doc_baseurl"]},
    classifiers=[
        f"Development Status :: {STATUS[cfg['status']]}",
        f"Intended Audience :: {cfg['audience']}",
        f"Natural Language :: {cfg['language']}",
        "Programming Language :: Python :: 3 :: Only",
        *(f"Programming Language :: Python :: {python}" for python in PYTHONS),
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    packages=find_packages(include=[cfg["lib_path"], cfg["lib_path"] + ".*"]),
    install_requires=cfg["requirements"].split(),
    extras_require=extras,
    entry_points={
        "console_scripts": cfg["console_scripts"].split(),
        "nbdev": [f"{cfg['lib_name']}={cfg['lib_path']}._modidx:d"],
    },
    zip_safe=False,
)
