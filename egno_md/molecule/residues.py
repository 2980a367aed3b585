"""Names of residues: which mean the same, and which belong to a chain though no list of standard residues has them."""

from __future__ import annotations

from collections.abc import Iterable


def _table(rows: dict[str, str]) -> dict[str, str]:
    return {name: residue for residue, names in rows.items() for name in names.split()}


_PROTEIN_ALIASES = _table(
    {
        "ARG": "ARGN ARN",
        "ASN": "ASN1",
        "ASP": "ASH ASPH ASPP",
        "CYS": "CYX CYM CYN CYSH CYS1 CYS2 CYSX",
        "GLN": "QLN",
        "GLU": "GLH GLUH GLUP",
        "HIS": "HSD HSE HSP HID HIE HIP HISA HISB HISD HISE HISH HISP HIS1 HIS2",
        "LYS": "LYN LYSH LSN LYSN",
        "MET": "MSE",
    }
)
_NUCLEIC_ALIASES = _table({"A": "ADE", "C": "CYT", "G": "GUA", "T": "THY", "U": "URA"}) | {
    f"{sugar}{base}{end}": base for base in "ACGTU" for sugar in ("", "D", "R") for end in ("", "3", "5", "N")
}

#: Residue names that mean the same residue: protonation states, disulfides, selenomethionine, force-field spellings.
RESIDUE_ALIASES = _PROTEIN_ALIASES | _NUCLEIC_ALIASES

#: Modified residues of the Protein Data Bank and the force fields, by what they are made of: phosphorylated,
#: methylated, acetylated, oxidised, carboxylated, of the other hand. A model that has no word of their own for them
#: reads them as their parent.
MODIFIED_AMINO_ACIDS = _table(
    {
        "ALA": "DAL AIB ABA AYA ALAD",
        "ARG": "DAR AGM CIR DA2 2MR NMM ARO HAR",
        "ASN": "DSG MEN AHB SNN",
        "ASP": "DAS PHD BFD BHD IAS ASF",
        "CYS": "DCY CME CSO CSD CSX CSS CSU CSP OCS SMC CAS CAF SNC YCM CMT SCY SEC P1L CCS CYG",
        "GLN": "DGN MEQ PCA",
        "GLU": "DGL CGU PGLU 5HP",
        "GLY": "SAR GL3",
        "HIS": "DHI HIC NEP MHS H1D H2D H1E H2E",
        "ILE": "DIL IIL",
        "LEU": "DLE MLE NLE",
        "LYS": "DLY KCX MLY MLZ M3L ALY LLP LYZ SLZ ORN DAB PYL BTK",
        "MET": "MED FME OMT SME MHO CXM",
        "PHE": "DPN PHI PFF",
        "PRO": "DPR HYP HY3",
        "SER": "DSN SEP SAC OAS S1P SP1 SP2",
        "THR": "DTH TPO T1P BMT",
        "TRP": "DTR HTR TRO",
        "TYR": "DTY PTR TYS Y1P NIY IYR OMY OMZ",
        "VAL": "DVA MVA",
    }
)
MODIFIED_NUCLEOTIDES = _table(
    {
        "A": "1MA 2MA A2M MIA MA6 6MZ T6A 6MA",
        "C": "5MC OMC 4OC 5CM",
        "G": "OMG 1MG 2MG M2G 7MG YYG YG QUO 8OG G7M DI I",
        "T": "BRU",
        "U": "PSU H2U OMU 4SU 5BU UR3 5MU",
    }
)

#: What MDAnalysis' ``protein`` and ``nucleic`` do not know and what is a link of a chain all the same.
CHAIN_AMINO_ACIDS = tuple(_PROTEIN_ALIASES) + tuple(MODIFIED_AMINO_ACIDS)
CHAIN_NUCLEOTIDES = tuple(_NUCLEIC_ALIASES) + tuple(MODIFIED_NUCLEOTIDES)


def canonical_residue(resname: str, vocabulary: Iterable[str]) -> str:
    """The vocabulary's word for a residue name, or the name itself; Amber marks chain ends with N or C in front."""
    for name in (resname, resname[1:] if len(resname) == 4 and resname[0] in "NC" else resname):
        for table in ({}, RESIDUE_ALIASES, MODIFIED_AMINO_ACIDS, MODIFIED_NUCLEOTIDES):
            candidate = table.get(name, name)
            if candidate in vocabulary:
                return candidate
    return resname
