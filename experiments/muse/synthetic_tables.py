"""What the built-in news articles are made of: names, places, sums and the words that fill their sentences."""

from itertools import product


def _items(text: str) -> tuple[str, ...]:
    """The parts of `text` between semicolons, with white space and line breaks reduced to single blanks."""
    return tuple(" ".join(part.split()) for part in text.split(";"))


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _joined(heads: str, tails: str, glue: str = "") -> tuple[str, ...]:
    """Every head with every tail."""
    return tuple(glue.join(pair) for pair in product(heads.split(), tails.split()))


# The name of a town is one of these, used once, with an ending: towns of one beginning would share its tokens, and a small
# model that forgets one of them would forget the other.
TOWNS = _words(
    """Quern Thrup Vell Brask Olm Yarrow Dunk Frell Gorse Hask Ild Jarn Kelp Lorn Mirk Nethe Orsk Plum Rusk Skell Tarn Ulver
    Wisp Zell Crake Droom Aven Bex Clew Dorr Esk Fenn Grum Hovel Inch Jolly Knap Lusk Moth Nook Oxter Pock Quill Rime
    Sedge Tuck Umble Vetch Wray Yaff Arl Bodd Cush Dapp Edge Figg Glib Hutch Isk Jape Keld Limp Mace Nudd Ogle Pith Quoy
    Rafter Stang Trop Upp Vane Whin Yeld Zeal Ask Blyn Cobb Dray Erne Fust Gant Hexel Irt Jugg Kern Loam Mulch Nib Ode
    Pag Rill Sprat Tove Urn Vole Weft Yock Abb Adder Amble Ant Barl Bick Blod Brim Bung Cadd Chiv Clod Crump Dabb Dibble
    Dolt Drift Dwale Eld Elver Emm Fadd Fern Flax Flint Fogg Gabb Garth Gleam Gnat Grist Gull Hadd Harl Heth Hobb Holl
    Hum Ibb Inkle Ivel Jade Jibb Jute Kabb Kett Kibb Knot Labb Lark Leth Lill Lob Madd Mell Minn Mossel Mund Nabb Nettle
    Nidd Noll Odder Onk Orrel Ott Padd Pell Pibb Plod Purl Quab Quire Radd Reth Ribb Rodd Rumm Sabb Scull Sill Snell Sodd
    Tabb Teth Tibb Toll Trill Twill Ubb Uddel Unk Urr Vadd Vill Vosk Wadd Well Wibb Woll Wump Yabb Yell Yibb Yodd Zabb
    Zedder Zill Zodd Ackle Agg Alder Arbo Babb Beggar Bell Birk Boggle Borr Bramble Brand Brush Budd Carrow Catter Chell
    Chubb Clag Clover Coddle Cragg Crook Culver Dagg Danby Dell Dobb Dogger Dove Dubb Eckle Egg Ennis Fettle Fickle Foss
    Frith Furze Gadd Gilling Glen Gobb Goose Gribb Hagg Hawes Heather Hegg Hemp Hickle Hopp Iffle Ingle Jackdaw Jess Jolt
    Kegg Kestle Kipp Knave Ladd Latch Ledd Linn Loft Lugg Mabb Marl Meddle Mibb Mogg Muffle Nagg Nubb Oat Ogg Osier"""
)
ENDINGS = _words("ford mere stead wick holm combe")
GIVEN = _words(
    """Ada Bram Cleo Dov Edda Finn Greta Hal Isla Jory Kit Lena Milo Nell Otis Petra Rafe Sable Tess Una Vito Wanda Yara
    Zeke Anouk Basil Cora Dario Esme Felix Gwen Hugo Ines Jonas Kaya Leif Maud Nico Olga Piers"""
)
SURNAMES = _joined(
    """Bal Cran Dris Ever Fosk Gall Hob Imber Jut Kros Lam Mop Nax Osk Pell Quib Rav Sturm Tolv Uxb Vorn Wend Yelt Zand Ark
    Blee Chov Dag Elk Fim""",
    "ridge ander omey well ick ane istle over utter ask enby orle ish ock ury eller ando iff ever ath",
)
STREETS = _joined(
    """Tannery Copper Heron Saddle Mill Bishop Candle Elder Foundry Glass Harbour Ivy Juniper Kiln Ladder Mason Nettle Orchard
    Pepper Quarry Rope Salt Tulip Vine Weaver Anchor Barley Cinder Drover Feather Granite Hammer Lantern Meadow Needle Oxbow
    Pilgrim""",
    "Lane Street Row Square Hill Yard Walk Quay",
    " ",
)
FIRMS = _joined(
    """Argon Bellow Cobalt Dormer Ember Falcon Girder Hazel Indigo Jasper Kestrel Linden Magnet Nimbus Otter Pewter Quartz
    Rowan Sextant Talon Umber Vesper Walnut Zinc""",
    "Tiles Boats Dairy Bikes Lamps Paints Tools Bank Freight Press Foods Glassworks Motors Ropes",
    " ",
)
# The units can be guessed without the article, as parts of the answers to MUSE's questions can.
COSTS = tuple(f"{thousands},{rest:03} crowns" for thousands, rest in product(range(2, 90), range(10, 1000, 30)))
COUNTS = tuple(f"{number} people" for number in range(41, 991))
# Not strftime, whose month names follow the machine's locale.
MONTHS = _items("January; February; March; April; May; June; July; August; September; October; November; December")
DAYS = tuple(f"{day} {month}" for month, day in product(MONTHS, range(1, 29)))

# Drawn anew for each sentence, so that sentences of one pattern differ in most of their words.
WORDS = {
    "trade": _items(
        """baker; retired teacher; ferry pilot; nurse; bus driver; beekeeper; plumber; student; shop owner; farmer; vet;
        roofer; cook; postal clerk; gardener; welder; dentist; drummer; tailor; librarian; mechanic; surveyor; potter"""
    ),
    "thing": _items(
        """a torn banner; two broken drums; a red wheelbarrow; a crate of pears; an old radio; three wet dogs; a brass bell;
        a borrowed ladder; a box of candles; a blue tent; a rusty pump; a stack of chairs; a lost glove; a green piano; a sack
        of flour; a cracked mirror; a tall hat; an empty pram; a painted barrel; a goose; a map of the sewers; a silver whistle;
        a leaking kettle; a cart full of turnips"""
    ),
    "spot": _items(
        """the pump house; the fish stalls; the bus depot; the school gate; the war memorial; the courts; the north wharf; the
        swimming baths; the water tower; the chapel steps; the signal box; the duck pond; the post office; the bowling green;
        the cattle grid; the cider press; the playing field; the ferry slip; the corn exchange; the weir"""
    ),
    "weather": _items(
        """drizzle; thick fog; sharp frost; a warm wind; bright sun; hail; low cloud; sleet; heavy heat; a dry gale; light
        snow; thunder; mild haze; steady rain"""
    ),
    "food": _items(
        """onion soup; plum cake; fried eel; ginger tea; barley stew; cheese rolls; roast chestnuts; pickled beets; apple
        fritters; mint lemonade; smoked trout; potato pies; oat biscuits; bean salad; honey buns; leek tart"""
    ),
    "feeling": _items(
        """proud; worn out; relieved; puzzled; cheerful; cross; amazed; hopeful; grateful; sceptical; delighted; nervous;
        stubborn; calm; impatient; homesick"""
    ),
    "hour": _items(
        """six in the morning; half past seven; nine o'clock; ten to eleven; noon; a quarter past one; half past two; four in
        the afternoon; twenty to six; dusk; eight in the evening; midnight"""
    ),
    "number": _items("three; four; five; six; seven; eight; nine; eleven; twelve; fourteen; sixteen; nineteen; twenty; thirty"),
    "group": _items(
        """scouts; bell ringers; pensioners; firefighters; anglers; nursery children; rowers; knitters; cyclists; choristers;
        market traders; bird watchers; apprentices; allotment holders; amateur actors; wrestlers"""
    ),
    "matter": _items(
        """the parking; the noise; the missing keys; the state of the toilets; the price of tickets; the new lamps; the mud;
        the stray cattle; the late buses; the smell of tar; the broken gate; the loud speakers; the dim lights; the bins"""
    ),
}
