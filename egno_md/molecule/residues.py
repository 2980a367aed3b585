"""Names of residues that mean the same."""

from __future__ import annotations

from collections.abc import Iterable

#: Residue names that mean the same residue: protonation states, disulfides, selenomethionine, force-field spellings.
RESIDUE_ALIASES = {
    alias: residue
    for residue, aliases in {
        "ARG": "ARGN ARN",
        "ASN": "ASN1",
        "ASP": "ASH ASPH ASPP",
        "CYS": "CYX CYM CYN CYSH CYS1 CYS2 CYSX",
        "GLN": "QLN",
        "GLU": "GLH GLUH GLUP",
        "HIS": "HSD HSE HSP HID HIE HIP HISA HISB HISD HISE HISH HISP HIS1 HIS2",
        "LYS": "LYN LYSH LSN LYSN",
        "MET": "MSE",
        "A": "ADE",
        "C": "CYT",
        "G": "GUA",
        "T": "THY",
        "U": "URA",
    }.items()
    for alias in aliases.split()
} | {f"{sugar}{base}{end}": base for base in "ACGTU" for sugar in ("", "D", "R") for end in ("", "3", "5", "N")}


def canonical_residue(resname: str, vocabulary: Iterable[str]) -> str:
    """The vocabulary's word for a residue name, or the name itself; Amber marks chain ends with N or C in front."""
    for name in (resname, resname[1:] if len(resname) == 4 and resname[0] in "NC" else resname):
        for candidate in (name, RESIDUE_ALIASES.get(name, name)):
            if candidate in vocabulary:
                return candidate
    return resname
