"""The language of a code: `zh`, `zho`, `chi`, `cmn-Hans` and `zh_TW` are the same."""

from __future__ import annotations

import difflib
import re
from functools import lru_cache

from dataengine.text.language_names import ENGLISH_NAMES

# ISO 639-1 codes with their codes in ISO 639-3 and 639-2 (iso-codes 4.15 of Debian), and the individual language that
# CLDR (languageAlias, by langcodes 3.5.1) takes for the whole of a macrolanguage, such as cmn for zh and zsm for ms.
_THREE_LETTERS = (
    "aa:aar ab:abk ae:ave af:afr ak:aka,fat am:amh an:arg ar:ara,arb as:asm av:ava ay:aym,ayr az:aze,azj "
    "ba:bak be:bel bg:bul bh:bih bi:bis bm:bam bn:ben bo:bod,tib br:bre bs:bos ca:cat ce:che ch:cha co:cos "
    "cr:cre,cwd cs:ces,cze cu:chu cv:chv cy:cym,wel da:dan de:deu,ger dv:div dz:dzo ee:ewe el:ell,gre en:eng "
    "eo:epo es:spa et:est,ekk eu:eus,baq fa:fas,per,pes,prs ff:ful,fuc fi:fin fj:fij fo:fao fr:fra,fre fy:fry "
    "ga:gle gd:gla gl:glg gn:grn,gug gu:guj gv:glv ha:hau he:heb hi:hin ho:hmo hr:hrv ht:hat hu:hun hy:hye,arm "
    "hz:her ia:ina id:ind ie:ile ig:ibo ii:iii ik:ipk,esk io:ido is:isl,ice it:ita iu:iku,ike ja:jpn jv:jav "
    "ka:kat,geo kg:kon,kng ki:kik kj:kua kk:kaz kl:kal km:khm kn:kan ko:kor kr:kau,knc ks:kas ku:kur,kmr "
    "kv:kom,kpv kw:cor ky:kir la:lat lb:ltz lg:lug li:lim ln:lin lo:lao lt:lit lu:lub lv:lav,lvs mg:mlg,plt "
    "mh:mah mi:mri,mao mk:mkd,mac ml:mal mn:mon,khk mr:mar ms:msa,may,zsm mt:mlt my:mya,bur na:nau nb:nob "
    "nd:nde ne:nep,npi ng:ndo nl:nld,dut nn:nno no:nor nr:nbl nv:nav ny:nya oc:oci oj:oji,ojg om:orm,gaz "
    "or:ori,ory os:oss pa:pan pi:pli pl:pol ps:pus,pbu pt:por qu:que,quz rm:roh rn:run ro:ron,rum ru:rus "
    "rw:kin sa:san sc:srd,src sd:snd se:sme sg:sag sh:hbs si:sin sk:slk,slo sl:slv sm:smo sn:sna so:som "
    "sq:sqi,alb,als sr:srp ss:ssw st:sot su:sun sv:swe sw:swa,swh,swc ta:tam te:tel tg:tgk th:tha ti:tir tk:tuk "
    "tl:tgl tn:tsn to:ton tr:tur ts:tso tt:tat tw:twi ty:tah ug:uig uk:ukr ur:urd uz:uzb,uzn ve:ven vi:vie "
    "vo:vol wa:wln wo:wol xh:xho yi:yid,ydd yo:yor za:zha,zyb zh:zho,chi,cmn zu:zul"
)
_WITHDRAWN = {"in": "id", "iw": "he", "ji": "yi", "jw": "jv", "mo": "ro"}  # withdrawn ISO 639-1 codes
_MAIN = _WITHDRAWN | {
    code: main
    for main, _, codes in (entry.partition(":") for entry in _THREE_LETTERS.split())
    for code in codes.split(",")
}

# The ISO 639-1 codes that are checked here.
_CHECKED = (
    "af am an ar as av az ba be bg bn bo br bs ca ce co cs cv cy da de dv dz el en eo es et eu fa fi fr fy ga gd gl "
    "gn gu gv ha he hi hr ht hu hy ia id ie ig io is it ja jv ka kk km kn ko ku kv kw ky la lb li lo lt lv mg mi mk "
    "ml mn mr ms mt my nb ne nl nn no oc or os pa pl ps pt qu rm ro ru sa sc sd sh si sk sl so sq sr st su sv sw ta "
    "te tg th ti tk tl tr tt ug uk ur uz vi vo wa xh yi yo zh zu"
)
NAMES = {code: ENGLISH_NAMES[code] for code in _CHECKED.split()}

# Country codes that are often used as language codes and are not language codes themselves.
_COUNTRY_CODES = "cn:zh hk:zh jp:ja kp:ko cz:cs dk:da gr:el vn:vi ua:uk us:en gb:en rs:sr ir:fa kh:km ge:ka il:he"
_COUNTRIES = dict(pair.split(":") for pair in _COUNTRY_CODES.split())


@lru_cache
def base_language(code: str | None) -> str:
    """The language of a code, without script and region, as an ISO 639-1 code; "" for no code.

    `zh-TW`, `zh_Hant`, `zho`, `chi`, `cmn-Hans-CN` are zh; `pt-BR` is pt; `zh-yue` and `yue-HK` are yue. A language
    without an ISO 639-1 code (`ceb`), or an unknown code, stays as it is, in lower case.
    """
    first, *rest = re.split("[-_]", (code or "").strip().lower())
    if rest and re.fullmatch("[a-z]{3}", rest[0]):  # an extended language, such as zh-yue
        first = rest[0]
    return _MAIN.get(first, first)


@lru_cache
def script_subtag(code: str | None) -> str:
    """The script in a code (ISO 15924, lower case): `hant` for zh-Hant-TW; "" for none."""
    rest = re.split("[-_]", (code or "").strip().lower())[1:]
    return next((tag for tag in rest if re.fullmatch("[a-z]{4}", tag)), "")


def meant_language(code: str, name: str = "") -> str:
    """A hint for an invalid code, such as "Chinese is zh"; "" if none is clear."""
    known = meant_code(code, name)
    return known and f"{NAMES[known]} is {known}"


def meant_code(code: str, name: str = "") -> str:
    """The code that an invalid code probably means; "" if that is not clear.

    Uses the English name that the user gives to the language, else reads the code as a name or a country code.
    """
    codes = {english.casefold(): known for known, english in NAMES.items()}
    for word in (name, code):
        first = re.split(r"[^\w ]", word.strip().casefold())[0].strip()
        if close := difflib.get_close_matches(first, codes, n=1, cutoff=0.85):
            return codes[close[0]]
        first = re.split("[-_]", first)[0]
        if known := _COUNTRIES.get(first):
            return known
    return ""
