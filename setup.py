"""Installation: `pip install .`; the dependencies serve TLS, PAM and LDAP."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent
VERSION = (HERE / "tofmipd/__init__.py").read_text().split('__version__ = "')[1].split('"')[0]

setup(
    name="tofmipd",
    version=VERSION,
    description="An authenticated SMTP submission proxy that tags the sender's address",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["tofmipd", "tofmipd.*"]),
    python_requires=">=3.11",
    install_requires=["pyOpenSSL>=23.0", "python-pam>=2.0.2", "ldap3>=2.9.1,<3"],
    entry_points={
        "console_scripts": ["tofmipd = tofmipd.cli:main", "tmda-ofmipd = tofmipd.cli:main"]
    },
)
