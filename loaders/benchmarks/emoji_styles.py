"""The drawing styles of emoji-RIB: pinned packages, and whom to credit. Draws nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from loaders import registry


@dataclass(frozen=True)
class Style:
    """One vendor's drawings: a pinned npm package and whom to credit for it.

    `sha512` is the tarball's, in base64; `size` its bytes, for the progress bar; `kind` is svg,
    webp or font; a `mono` style is one ink without colours of its own.
    """

    name: str
    package: str
    version: str
    sha512: str
    size: int
    licence: str
    credit: str
    url: str
    kind: str = "svg"
    upstream: bool = False
    mono: bool = False

    @property
    def integrity(self) -> str:
        return f"sha512-{self.sha512}"

    def path(self, cache: Path) -> Path:
        """Where the verified tarball lies in the cache."""
        return cache / registry.npm_filename(self.package, self.version)


_GOOGLE = ("Google Inc", "https://github.com/googlefonts/noto-emoji")
_FLUENT = ("Microsoft Corporation", "https://github.com/microsoft/fluentui-emoji")
_EMOJI_ONE = ("Emoji One 2.3 (EmojiTwo)", "https://github.com/EmojiTwo/emojitwo")

_ALL = (
    Style(
        "noto", "@iconify-json/noto", "1.2.9",
        "DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0mqHYeZVAuaw==",
        3_102_958, "Apache-2.0", *_GOOGLE, upstream=True,
    ),
    Style(
        "fluent-3d", "@lobehub/fluent-emoji-3d", "1.1.0",
        "Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaecgl5wRBv60lUAG3h7g==",
        15_792_027, "MIT", *_FLUENT, kind="webp", upstream=True,
    ),
    Style(
        "fluent-flat", "@iconify-json/fluent-emoji-flat", "1.2.6",
        "RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWqQYvuaSYM1M4fRXlUw==",
        1_172_438, "MIT", *_FLUENT,
    ),
    Style(
        "twemoji", "@iconify-json/twemoji", "1.2.5",
        "uKpuIEV0v6K5BW3Mjdyl+XKFVAbbcPxAgifKvEMtZoUZB5+YiY5zaMm2uNNCxyXzAWU9yNLlj41WU6/mvgALsw==",
        1_555_888, "CC-BY-4.0", "Twitter", "https://github.com/jdecked/twemoji",
    ),
    Style(
        "emojione", "@iconify-json/emojione", "1.2.3",
        "T9+T3HIbJNLKKsmxYKlaYhvnHYkz/HNYTV7SHCXVZPfeUi4FqskY70YeN8yYAZT8cCv7w5vJxS4Q1m8zb9CMMg==",
        687_690, "CC-BY-4.0", *_EMOJI_ONE,
    ),
    Style(
        "noto-v1", "@iconify-json/noto-v1", "1.2.5",
        "/DsVMius69Q0fRS53z7QK1TROSuar606jiIx+laXtdsYGMXpf6LtHBx6CGfoo3UHHb/XpBsw+1L1x3eyPqMuVA==",
        1_587_591, "Apache-2.0", *_GOOGLE,
    ),
    Style(
        "openmoji", "@iconify-json/openmoji", "1.2.29",
        "vXdhkqcXVSO6suy+m9LbcUM3OdVyuNOtpV8/als/WqfkQIRxevL5Geb/g+6GH/Qwnq1OqksEmaDGTCmZ5nFKJQ==",
        1_264_633, "CC-BY-SA-4.0", "OpenMoji", "https://github.com/hfg-gmuend/openmoji",
    ),
    Style(
        "high-contrast", "@iconify-json/fluent-emoji-high-contrast", "1.2.6",
        "esqhZPpkrF7sNX3NsLoh8KW64okEr/bzko7WNnFP+qTJGAqDPDYjp0925yxuivXy3HtVQB8xhIKu3+Nq1byX5w==",
        1_054_969, "MIT", *_FLUENT, mono=True,
    ),
    Style(
        "emojione-monotone", "@iconify-json/emojione-monotone", "1.2.1",
        "cZSNcPsuiAD6HCzCh/2dYKGh3pNI0jJlxBxQWfC33cQsPtqYZqulGBvlkThXYNvDl8VxgVHT9u+izyX/yeEIkA==",
        1_094_642, "CC-BY-4.0", *_EMOJI_ONE, mono=True,
    ),
    Style(
        "noto-mono", "@expo-google-fonts/noto-emoji", "0.4.7",
        "Gs7URwtKmCzzdGUTYbG8MIohyaQPgGxIaQG5hvyEAaQiEGJpQy6gyP3NDICE0EJkOJFoe1JFD3Hf1L4a3qe4KA==",
        2_961_105, "OFL-1.1", *_GOOGLE, kind="font", mono=True,
    ),
)  # fmt: skip
STYLES: dict[str, Style] = {style.name: style for style in _ALL}
UPSTREAM = tuple(style.name for style in _ALL if style.upstream)
DOWNSTREAM = tuple(style.name for style in _ALL if not style.upstream)
