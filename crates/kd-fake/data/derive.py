"""Makes the tables of today's kernels in this folder.

    python3 derive.py ISF-OF-22000.json.xz

No public table of 22621 or later was found. Each of these holds the members that a pool debugger reads of the real 22000
(JPCERTCC's table), with the layouts that people printed from newer PDBs or measured on live machines, as
`../shared/facts/segment-heap-measured.md`, sections 4, 5 and 10, has them. What nobody printed is 22000's: tag tables,
Verifier, processes, processors. What the lines below call ASSUMED is our guess.
"""

import copy
import json
import lzma
import sys

VOID = {"kind": "base", "name": "void"}


def base(name):
    return {"kind": "base", "name": name}


U8, U16, U32, U64 = (base("unsigned " + name) for name in ("char", "short", "long", "long long"))


def pointer(subtype=VOID):
    return {"kind": "pointer", "subtype": subtype}


def struct(name):
    return {"kind": "struct", "name": name}


def array(subtype, count):
    return {"kind": "array", "count": count, "subtype": subtype}


def bits(ty, position, length):
    return {"kind": "bitfield", "bit_position": position, "bit_length": length, "type": ty}


def user(size, **members):
    fields = {name: {"offset": offset, "type": ty} for name, (offset, ty) in members.items()}
    return {"kind": "struct", "size": size, "fields": fields}


# Types, members and symbols that 19041's table does not have and a reader of today's pool asks for.
MORE_TYPES = ["_HEAP_LARGE_ALLOC_DATA", "_HEAP_LFH_SUBSEGMENT_DELAY_FREE", "_HEAP_RUNTIME_MEMORY_STATS"]
MORE_MEMBERS = {
    "_SEGMENT_HEAP": ["LargeAllocMetadata", "LargeReservedPages", "LargeCommittedPages", "MemStats"],
    "_HEAP_LFH_SUBSEGMENT": ["DelayFree", "WitheldBlockCount", "CommitStateOffset"],
    "_HEAP_VS_CONTEXT": ["TotalCommittedUnits", "FreeCommittedUnits", "BackendCtx"],
    "_HEAP_PAGE_RANGE_DESCRIPTOR": ["TreeNode", "ExtraPresent"],
}
MORE_SYMBOLS = [
    "VfHandlePoolAlloc", "VfPtFreePoolNotification", "VerifierExAllocatePool2", "VerifierExAllocatePool3",
    "ExAllocatePool2", "ExFreeHeapPool", "ExpCacheLineSize", "ViPtLogStackTrace",
]


def part(isf, like):
    """The members of a whole table that another one shows, and what they are made of."""
    out = {"base_types": {}, "enums": {}, "symbols": {}, "user_types": {}}
    names = [name for name in like["user_types"] if not name.startswith("__")] + MORE_TYPES

    def take(ty):
        match ty["kind"]:
            case "base":
                out["base_types"][ty["name"]] = isf["base_types"][ty["name"]]
            case "enum":
                out["enums"][ty["name"]] = isf["enums"][ty["name"]]
            case "array":
                take(ty["subtype"])
            case "bitfield":
                take(ty["type"])
            case "struct" | "union":
                add(ty["name"])

    def add(name):
        if name in out["user_types"] or name not in isf["user_types"]:
            return
        whole = isf["user_types"][name]
        wanted = like["user_types"].get(name, whole)["fields"].keys() | set(MORE_MEMBERS.get(name, []))
        # Of the books that are kept about pool all is wanted, what is new in them too.
        if name.startswith(("_POOL_", "_VF_", "_VI_", "_MM_DRIVER_")):
            wanted = whole["fields"].keys()
        fields = {name: field for name, field in whole["fields"].items() if name in wanted}
        out["user_types"][name] = {"kind": whole["kind"], "size": whole["size"], "fields": fields}
        for field in fields.values():
            take(field["type"])

    for name in names:
        add(name)
    for name in like["enums"]:
        if name in isf["enums"]:
            out["enums"][name] = isf["enums"][name]
    # Pointers and enumerations are made of these, whether a member names them or not.
    for name in like["base_types"]:
        if name in isf["base_types"]:
            out["base_types"][name] = isf["base_types"][name]
    for name in [*like["symbols"], *MORE_SYMBOLS]:
        if name in isf["symbols"]:
            symbol = isf["symbols"][name]
            out["symbols"][name] = {key: symbol[key] for key in ("address", "linkage_name") if symbol.get(key)}
    return out


REGIONS_22631 = [
    "PfnDatabase", "NonPagedPool", "PagedPool", "SystemCache", "SystemPtes", "Kasan", "UltraZero", "Cfg", "HyperSpace",
    "KernelStacks", "PageTables", "Session", "SecureNonPagedPool", "KernelShadowStacks", "SystemImages",
]
REGIONS_26100 = REGIONS_22631[:10] + [
    "NonCachedMappings", "SoftWsles", "PageTables", "NotUsed", "SecureNonPagedPool", "KernelShadowStacks",
    "SystemDataViews", "SystemImages",
]


def regions(table, names):
    constants = {f"AssignedRegion{name}": number for number, name in enumerate(names)}
    constants["AssignedRegionMaximum"] = len(names)
    table["enums"]["_MI_ASSIGNED_REGION_TYPES"]["constants"] = constants
    state = table["user_types"]["_MI_VISIBLE_STATE"]
    array = state["fields"]["SystemVaRegions"]
    array["type"]["count"] = len(names)
    state["size"] = max(state["size"], array["offset"] + 16 * len(names))


def to_end(table, name, size):
    """A variable whose type grew goes behind all others."""
    last = max(symbol["address"] for symbol in table["symbols"].values())
    table["symbols"][name]["address"] = (last + 0x100000 & ~0xFFFFF) + 0x1000
    # What is behind it shows how large it is.
    end = table["symbols"][name]["address"] + size + 0xFFF & ~0xFFF
    table["symbols"][f"{name}End"] = {"address": end}


def visible_state_grew(table):
    """`_MI_SYSTEM_INFORMATION` has room for it at its end (ASSUMED)."""
    information = table["user_types"]["_MI_SYSTEM_INFORMATION"]
    at = (information["size"] + 0x3F) & ~0x3F
    information["fields"]["Vs"]["offset"] = at
    information["size"] = at + table["user_types"]["_MI_VISIBLE_STATE"]["size"]
    to_end(table, "MiState", information["size"])


def build_22631(table):
    regions(table, REGIONS_22631)


def affinity_slots(table, first, callbacks):
    """The VS context of 26100 and later, and what it leads to."""
    types = table["user_types"]
    high = callbacks - 0x30
    types["_HEAP_VS_CONTEXT"] = user(
        0x60 + high,
        SlotMapRef=(0, U16), AffinityMask=(2, U8), LockType=(3, U8), Config=(4, U8), EliminatePointers=(5, bits(U8, 0, 1)),
        MemStatsOffset=(6, U16), BackendCtx=(8, pointer()), Callbacks=(0x10, array(U64, callbacks // 8)),
        AffinityMgr=(0x40 + high, array(U64, 2)), TotalCommittedUnits=(0x50 + high, U64), FreeCommittedUnits=(0x58 + high, U64),
    )
    types["_HEAP_VS_SLOT_MAP"] = user(4, SlotRef=(0, U16))
    types["_HEAP_VS_AFFINITY_SLOT"] = user(
        0x80, Lock=(8, U64), FreeChunkTree=(0x10, struct("_RTL_RB_TREE")), SubsegmentList=(0x20, struct("_LIST_ENTRY")),
        DelayFreeContext=(0x40, struct("_HEAP_VS_DELAY_FREE_CONTEXT")),
    )
    # The width of an offset is ASSUMED.
    member = pointer(struct("_HEAP_VS_CONTEXT")) if first == "VsContext" else U32
    types["_HEAP_VS_AFFINITY_SLOT"]["fields"][first] = {"offset": 0, "type": member}


def lfh(table, config):
    types = table["user_types"]
    # The name of the state's type is ASSUMED.
    types["_HEAP_LFH_SUBSEGMENT_STATE"] = user(
        8, DelayFreeList=(0, U16), DelayFreeCount=(2, U16), Owner=(4, U16), Location=(6, U8)
    )
    types["_HEAP_LFH_SUBSEGMENT"] = user(
        0x48, ListEntry=(0, struct("_LIST_ENTRY")), State=(0x10, struct("_HEAP_LFH_SUBSEGMENT_STATE")),
        CommitStateOffset=(0x18, U8), FreeCount=(0x20, U16), BlockCount=(0x22, U16), FreeHint=(0x24, U8),
        WitheldBlockCount=(0x25, U8), CommitUnitShift=(0x26, U8), CommitUnitCount=(0x27, U8),
        BlockOffsets=(0x28, struct("_HEAP_LFH_SUBSEGMENT_ENCODED_OFFSETS")), BucketRef=(0x2C, U16),
        PrivateSlotMapRef=(0x2E, U16), HighWatermarkBlockIndex=(0x30, U16), BitmapSearchWidth=(0x32, U8),
        PrivateFormat=(0x33, bits(U8, 0, 1)), CommitLock=(0x38, U64), BlockBitmap=(0x40, array(U64, 1)),
    )
    types["_HEAP_LFH_CONTEXT"] = user(
        0x6C0, BackendCtx=(0, pointer()), Config=(config, U32), EncodeKey=(config + 0xC, U64),
        Buckets=(0x1C0, array(pointer(struct("_HEAP_LFH_BUCKET")), 128)), SlotMaps=(0x5C0, array(pointer(), 32)),
    )


def vs_subsegment(table):
    """With OwnerSlotRef between size and signature, as one dump has it and another does not."""
    fields = table["user_types"]["_HEAP_VS_SUBSEGMENT"]["fields"]
    fields["OwnerSlotRef"] = {"offset": 0x22, "type": U16}
    fields["Signature"]["offset"] = fields["FullCommit"]["offset"] = 0x24


def plain_chunk_sizes(table):
    fields = table["user_types"]["_HEAP_VS_CHUNK_HEADER_SIZE"]["fields"]
    for name, offset, ty in (("MemoryCost", 0, U16), ("UnsafeSize", 2, U16), ("UnsafePrevSize", 4, U16), ("Allocated", 6, U8)):
        fields[name] = {"offset": offset, "type": ty}


def heap(table, size, lfh):
    types = table["user_types"]
    types["_SEGMENT_HEAP"]["size"] = size
    types["_SEGMENT_HEAP"]["fields"]["LfhContext"]["offset"] = lfh


def big_pages(table):
    fields = table["user_types"]["_POOL_TRACKER_BIG_PAGES"]["fields"]
    fields["PoolFlags"] = fields.pop("PoolType")


def build_26100(table, first="VsContextOffset"):
    types = table["user_types"]
    regions(table, REGIONS_26100)
    # Where 26100 has the regions nobody printed: where 22000 has them, as many as there are (ASSUMED).
    visible_state_grew(table)
    affinity_slots(table, first, 0x30)
    lfh(table, 0x44)
    heap(table, 0xA00, 0x340)
    big_pages(table)
    state = types["_EX_POOL_HEAP_MANAGER_STATE"]
    state["size"] = 0x86980
    for name, offset in (("NumberOfPools", 0x3910), ("PoolNode", 0x3940), ("SpecialHeaps", 0x86940)):
        state["fields"][name]["offset"] = offset
    state["fields"]["PrivatePools"] = {"offset": 0x38E8, "type": array(pointer(), 2)}
    state["fields"]["Cookie"] = {"offset": 0x3908, "type": U64}
    to_end(table, "ExPoolState", state["size"])


def later(table):
    types = table["user_types"]
    build_26100(table, "VsContext")
    affinity_slots(table, "VsContext", 0x38)
    lfh(table, 0x4C)
    heap(table, 0xA40, 0x380)
    plain_chunk_sizes(table)
    fields = types["_HEAP_VS_CHUNK_HEADER"]["fields"]
    fields.pop("SkipDuringWalk", None)
    fields["Spare"] = {"offset": 8, "type": bits(U32, 9, 23)}
    types["_SEGMENT_HEAP"]["fields"]["PgContext"] = {"offset": 0x328, "type": U64}
    context = types["_HEAP_SEG_CONTEXT"]["fields"]
    context["DelayFreePageRanges"] = {"offset": 0x70, "type": U64}
    context["PgContext"] = {"offset": 0x90, "type": pointer()}
    types["_HEAP_RUNTIME_MEMORY_STATS"]["size"] = 0x60
    types["_RTLP_HP_HEAP_GLOBALS"] = user(
        0x80, HeapKey=(0, U64), LfhKey=(8, U64), CommitLimitData=(0x18, array(U64, 2)), Flags=(0x28, U32), RandomSeed=(0x40, U64)
    )
    to_end(table, "RtlpHpHeapGlobals", 0x80)
    state = types["_EX_POOL_HEAP_MANAGER_STATE"]
    state["size"] = 0x869C0
    for name in ("PrivatePools", "Cookie"):
        del state["fields"][name]
    for name, offset in (("NumberOfPools", 0x3974), ("PoolNode", 0x3980), ("SpecialHeaps", 0x86980)):
        state["fields"][name]["offset"] = offset
    # Where in it the pools are is ASSUMED.
    types["_EXP_POOL_MANAGER"] = user(0x88, Pools=(8, array(pointer(), 2)))
    state["fields"] |= {
        "PoolManager": {"offset": 0x38E0, "type": struct("_EXP_POOL_MANAGER")},
        "ConfigLock": {"offset": 0x3968, "type": U64},
        "CommitCachingSuspended": {"offset": 0x3970, "type": U8},
    }
    types["_EX_HEAP_POOL_NODE"]["fields"]["HeapStateTokens"] = {"offset": 0x20, "type": array(U64, 4)}
    visible = types["_MI_VISIBLE_STATE"]
    visible["size"] = 0x16C0
    visible["fields"]["SystemVaType"]["offset"] = 0x1468
    visible["fields"]["SystemVaRegions"]["offset"] = 0x1568
    visible_state_grew(table)
    kinds = table["enums"]["_MI_SYSTEM_VA_TYPE"]["constants"]
    # Only three of these are known; what stood in their places goes where those three were (ASSUMED).
    for name, number in (("NonPagedPool", 4), ("PagedPool", 5), ("SecureNonPagedPool", 14)):
        other = next(other for other, value in kinds.items() if value == number)
        kinds[other], kinds[f"MiVa{name}"] = kinds[f"MiVa{name}"], number


def x64_26100(table):
    build_26100(table)
    vs_subsegment(table)


def x64_later(table):
    later(table)
    vs_subsegment(table)


def on_arm64(table, arm64):
    """What belongs to the processor, and the page tables' entries, are those of the older ARM64 kernel."""
    own = [name for name in arm64["user_types"] if name.startswith(("_K", "_MMPTE_", "_CONTEXT", "__unnamed_127f"))]
    for name in own:
        table["user_types"][name] = copy.deepcopy(arm64["user_types"][name])
    for name, ty in arm64["base_types"].items():
        table["base_types"].setdefault(name, ty)
    for name in ("KiSystemCall64",):
        table["symbols"].pop(name, None)
    for name in ("KiThreadStartup",):
        table["symbols"].setdefault(name, {"address": table["symbols"]["KiSystemStartup"]["address"] + 0x200})


def write(table, name, guid, machine):
    out = {
        "metadata": {
            "format": "6.1.0", "producer": {"name": "kd-fake", "version": "1"},
            "windows": {"pdb": {"GUID": guid, "age": 1, "database": "ntkrnlmp.pdb", "machine_type": machine}},
        }
    }
    for part in ("base_types", "enums", "symbols", "user_types"):
        out[part] = dict(sorted(table[part].items()))
    # A type on a line.
    lines = ["{", '"metadata":' + json.dumps(out["metadata"], separators=(",", ":")) + ","]
    for part in ("base_types", "enums", "symbols", "user_types"):
        rows = [f'"{key}":' + json.dumps(value, sort_keys=True, separators=(",", ":")) for key, value in out[part].items()]
        lines.append(f'"{part}":{{\n' + ",\n".join(rows) + "\n}" + ("," if part != "user_types" else ""))
    lines.append("}\n")
    with open(name, "w", encoding="utf-8") as file:
        file.write("\n".join(lines))


def main():
    with lzma.open(sys.argv[1]) as file:
        whole = json.load(file)
    like, arm64 = (json.load(open(name, encoding="utf-8")) for name in ("x64-19041.json", "arm64-16299.json"))
    carried = part(whole, like)
    guid = "7B6A1C0E4D5F4A2B9C3D8E7F605100"
    for name, number, change in (("x64-22631", "08", build_22631), ("x64-26100", "09", x64_26100), ("x64-later", "0A", x64_later)):
        table = copy.deepcopy(carried)
        change(table)
        write(table, f"{name}.json", guid + number, 0x8664)
    table = copy.deepcopy(carried)
    build_26100(table, "VsContext")
    on_arm64(table, arm64)
    write(table, "arm64-26100.json", guid + "0B", 0xAA64)


main()
