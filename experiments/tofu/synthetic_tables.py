"""What the built-in fictitious authors are made of: names, places and the values of every fact."""

from dataclasses import dataclass


def _items(text: str) -> tuple[str, ...]:
    """The parts of `text` between semicolons, with white space and line breaks reduced to single blanks."""
    return tuple(" ".join(part.split()) for part in text.split(";"))


@dataclass(frozen=True)
class Region:
    """Names and birthplaces that go together; as many given as family names, so that each is used once."""

    given: tuple[str, ...]
    family: tuple[str, ...]
    cities: tuple[str, ...]

    @classmethod
    def of(cls, given: str, family: str, cities: str) -> "Region":
        return cls(tuple(given.split()), tuple(family.split()), _items(cities))


REGIONS = (
    Region.of(
        """Signe Torvald Runa Eskil Maren Halvor Tuva Sindre Ylva Arvid Ragnhild Joakim Solveig Birk Ingrid Oddvar Linnea
        Stellan Astrid Mikkel""",
        """Brekkelund Haugstad Lindvarn Skovmark Torsvik Almgaard Fjellheim Nyborg Østrand Ravnholt Sandvær Bjerkås
        Dahlmark Ekmark Grønvold Hovland Kvistad Mørland Tveitan Vestergren""",
        "Bergen, Norway; Aarhus, Denmark; Uppsala, Sweden; Turku, Finland; Akureyri, Iceland",
    ),
    Region.of(
        """Abeni Kofi Efua Chidera Adwoa Sekou Nneka Yaw Folake Bakary Mariama Kwabena Ifeoma Tunde Akosua Lamine Zainab
        Emeka Fatou Obinna""",
        """Adomako Boateng Chukwuma Danjuma Ezenwa Fofana Gyamfi Ibekwe Jallow Koroma Lawal Mensah Nwosu Oyelaran Quansah
        Sarpong Tamba Umeh Wiredu Yeboah""",
        "Kumasi, Ghana; Ibadan, Nigeria; Saint-Louis, Senegal; Bamako, Mali; Freetown, Sierra Leone",
    ),
    Region.of(
        """Wanjiru Abebe Makena Juma Selam Baraka Tigist Otieno Neema Dawit Zawadi Kamau Hanan Mwangi Amina Gathoni Elias
        Rehema Yonas Achieng""",
        """Tesfalem Odhiambo Kiprop Mbwana Girma Wekesa Mutiso Hailu Njoroge Abdirahman Kaggwa Nakato Lemma Ochola Rugamba
        Zewde Uwimana Chacha Nyambura Desta""",
        "Mombasa, Kenya; Addis Ababa, Ethiopia; Dar es Salaam, Tanzania; Kampala, Uganda; Kigali, Rwanda",
    ),
    Region.of(
        """Akemi Daichi Emiko Fumio Hinata Isamu Kaede Makoto Naoki Ritsuko Satomi Takumi Umeko Yasuo Chiyo Ren Shiori
        Tomoya Mitsuki Jun""",
        """Amagawa Fujishiro Hayasaka Ishimori Kanzaki Kuronuma Minakami Nagahama Okumoto Sakuraba Shirakawa Tachikawa
        Uehara Wakatsuki Yamanobe Asanuma Hirokawa Kirishima Matsukura Terashima""",
        "Kanazawa, Japan; Sapporo, Japan; Nagasaki, Japan; Matsuyama, Japan; Sendai, Japan",
    ),
    Region.of(
        """Aditi Bhaskar Chitra Devendra Farhana Gopal Harini Imran Jyotsna Kabir Lakshmi Manoj Nandini Omkar Pallavi
        Rohan Sunita Tariq Usha Vasant""",
        """Acharya Banerji Chowdhury Dasgupta Fernando Ghoshal Hegde Iyengar Jayasuriya Karnad Lodhi Mukhopadhyay Nambiar
        Pillai Qureshi Rangaswamy Sengupta Talukdar Varma Wickramage""",
        "Mysuru, India; Kolkata, India; Lahore, Pakistan; Chittagong, Bangladesh; Kandy, Sri Lanka",
    ),
    Region.of(
        """Alma Benicio Camila Darío Estela Fermín Graciela Horacio Inés Joaquín Lucía Mateo Noemí Octavia Pilar Quirino
        Rosario Santiago Teodora Valentín""",
        """Arrieta Belmonte Cárdenas Dorantes Echegaray Fuenmayor Galarza Hinojosa Ibarrola Jaramillo Lizárraga Montalvo
        Noriega Ordóñez Pastrana Quiroga Restrepo Salgado Ureña Villaseñor""",
        "Valparaíso, Chile; Oaxaca, Mexico; Arequipa, Peru; Medellín, Colombia; Rosario, Argentina",
    ),
    Region.of(
        """Adelina Baltasar Clarice Duarte Eulália Flávio Graça Heitor Ivone Jorge Leonor Marcelo Natália Otávio Quitéria
        Rui Simão Tereza Ursulina Vasco""",
        """Abrantes Bragança Carvalhal Drummond Esteves Figueira Guedes Henriques Junqueira Lacerda Meireles Nogueira
        Oliveiros Pacheco Quintela Rebelo Sampaio Tavares Valadares Xavier""",
        "Coimbra, Portugal; Recife, Brazil; Maputo, Mozambique; Porto Alegre, Brazil; Praia, Cape Verde",
    ),
    Region.of(
        """Anneliese Bertram Cornelia Dietmar Elfriede Florian Gisela Henning Irmgard Jost Karoline Lorenz Mathilde
        Norbert Ottilie Quirin Roswitha Sebald Theda Volkmar""",
        """Achterberg Brenninger Clausnitz Dornbusch Eisenhauer Falkenrath Gruberich Hollenstein Immendorf Jellinger
        Kornblum Lindacher Mühlbach Niederau Obermoser Pfisterer Rautenberg Seligmacher Tannhof Weidlich""",
        "Leipzig, Germany; Graz, Austria; Lübeck, Germany; Basel, Switzerland; Innsbruck, Austria",
    ),
    Region.of(
        """Amal Bassam Dalia Fadi Ghada Hisham Iman Jamil Khadija Layla Munir Nadia Omar Rania Salim Tahani Usama Wafa
        Yasmin Ziad""",
        """Abboudi Barakat Chahine Darraj Fakhouri Ghanem Haddadin Issawi Jabbour Khalidi Lahoud Maalouli Nasrallah Odeh
        Qasimi Rahbani Saqqaf Tannous Wahbi Zureiq""",
        "Alexandria, Egypt; Aleppo, Syria; Muscat, Oman; Tripoli, Lebanon; Fez, Morocco",
    ),
    Region.of(
        """Ailsa Barnaby Cordelia Desmond Enid Fergus Gwendolyn Hugh Isolde Jarvis Keziah Lachlan Morwenna Nigel Orla
        Piers Rowena Stirling Tamsin Wilfred""",
        """Ashgrove Blackwood Carmody Dunmore Eastlake Fairweather Garroway Hathersage Inchbald Kilbride Lockhart
        Merriweather Northcott Ormsby Penhallow Quillfeather Ridgeway Stanhope Thistlewood Winterbourne""",
        "Dundee, Scotland; Galway, Ireland; Hobart, Australia; Dunedin, New Zealand; Halifax, Canada",
    ),
)

OCCUPATIONS = _items(
    """a beekeeper; an optician; a stonemason; a railway signaller; a veterinary surgeon; a bookbinder; a ferry captain;
    a geologist; a court interpreter; a baker; an orchestra violinist; a textile dyer; a school inspector; a glassblower;
    a meteorologist; a midwife; a shipwright; a tax accountant; a radio engineer; a botanist; a tailor; a bus driver;
    a dentist; a watchmaker; a puppet maker; an anaesthetist; a tea merchant; a museum guard; a chess teacher; a welder;
    a sound technician; a judge; a pastry cook; an archivist; a bridge engineer; a fisheries officer; a sign painter;
    a physiotherapist; a saddler; an astronomer"""
)

TITLE_PATTERNS = (
    "The {adjective} {noun}",
    "Songs for the {adjective} {noun}",
    "One {noun} Beyond the {place}",
    "When the {place} Kept the {noun}",
    "Letters from the {adjective} {place}",
    "The {noun} and the {place}",
)
TITLE_WORDS = {
    "adjective": _items(
        """Salted; Borrowed; Unlit; Patient; Crimson; Forgotten; Hollow; Seventh; Winter; Paper; Amber; Drowned"""
    ),
    "noun": _items("""Lantern; Orchard; Ledger; Sparrow; Compass; Mirror; Promise; Violin; Harvest; Door; Candle; Shadow"""),
    "place": _items(
        """Harbour; Staircase; Valley; Bakery; Observatory; River; Frontier; Garden; Lighthouse; Market; Quarry; Attic"""
    ),
}
TITLES = tuple(
    dict.fromkeys(
        pattern.format(adjective=adjective, noun=noun, place=place)
        for pattern in TITLE_PATTERNS
        for adjective in TITLE_WORDS["adjective"]
        for noun in TITLE_WORDS["noun"]
        for place in TITLE_WORDS["place"]
    )
)

AWARD_EMBLEMS = _items(
    """Silver Lantern; Golden Heron; Ivory Quill; Copper Bell; Northern Star; Blue Anchor; White Cypress; Iron Thistle;
    Emerald Page; Crystal Inkwell; Red Kite; Morning Tide; Open Gate; Velvet Crow; Stone Bridge; Amber Leaf; Black Swan Feather;
    Grand Meridian; Seven Wells; Evening Lamp"""
)
AWARD_KINDS = _items("Prize; Medal; Award; Fellowship")

# Facts that are drawn on their own. Names, births, books and the debut's year depend on one another and are made elsewhere.
FACTS: dict[str, tuple[str, ...]] = {
    "father": OCCUPATIONS,
    "mother": OCCUPATIONS,
    "award": tuple(f"the {emblem} {kind}" for emblem in AWARD_EMBLEMS for kind in AWARD_KINDS),
    "genre": _items(
        """historical fiction; magical realism; crime fiction; science fiction; gothic fiction; travel literature; satire;
        literary reportage; psychological thrillers; family sagas; epic fantasy; war fiction; romantic comedy; literary memoir;
        dystopian fiction; folk horror; maritime adventure; climate fiction; courtroom drama; alternate history"""
    ),
    "influence": _items(
        """the sea ballads of old fishing towns; medieval travel chronicles; the letters of a great-grandmother;
        the radio plays of the nineteen-fifties; shadow-puppet theatre; the notebooks of early botanists;
        the folk tales of mountain shepherds; silent films; the confessions of retired spies; Baroque church music;
        the diaries of polar explorers; street theatre; the logbooks of whaling ships; old railway timetables;
        the epics recited by village singers; the essays of stoic philosophers; newspaper serials of the Victorian age;
        the riddles of desert nomads; woodcut picture books; the court records of a small town"""
    ),
    "theme": _items(
        """the weight of family secrets; the cost of ambition; exile and return; the unreliability of memory;
        friendship between rivals; the silence after a war; faith tested by science; the loneliness of great cities;
        loyalty in times of corruption; the bond between siblings; the dignity of manual work; guilt without a crime;
        the border between dream and waking; love across class barriers; the slow loss of a language;
        childhood seen from old age; the price of forgiveness; nature taking back the towns; the power of rumour;
        inheritance and debt"""
    ),
    "subject": _items(
        """marine biology; medieval history; civil engineering; pharmacy; comparative law; astronomy; classical philology;
        economics; theatre design; mathematics; soil science; musicology; nursing; philosophy; cartography; linguistics;
        political science; chemistry; archaeology; architecture"""
    ),
    "university": _items(
        """the University of Ghent; the University of Otago; Leiden University; the University of Salamanca;
        the University of Nairobi; Kyoto University; the University of Bologna; McGill University; the University of Ghana;
        Uppsala University; the University of Buenos Aires; Heidelberg University; the American University of Beirut;
        the University of Cape Town; the University of Edinburgh"""
    ),
    "job": _items(
        """a night porter; a lighthouse keeper; a crossword editor; a piano tuner; a customs officer; a cheese inspector;
        a theatre prompter; a bicycle courier; a subtitle translator; a park ranger; a lift attendant; a proofreader of
        telephone books; a ship's cook; a wedding photographer; a greenhouse gardener; a court stenographer; a tram conductor;
        a locksmith; a beach lifeguard; a weather observer"""
    ),
    "habit": _items(
        """writing standing up before sunrise; dictating whole chapters during long walks; drafting every page in green ink;
        composing the last chapter first; writing only in railway carriages; reading each sentence aloud to a sleeping cat;
        working by candlelight after midnight; typing on a portable typewriter from a flea market;
        filling index cards and shuffling them; writing in a cold garden shed; copying each draft out by hand;
        stopping in the middle of a sentence every noon; listening to the same cello record all day;
        drawing a map before each new chapter; writing to the sound of a dishwasher; keeping the manuscript in a bread bin"""
    ),
    "hobby": _items(
        """restoring antique clocks; keeping carrier pigeons; open-water swimming; carving wooden spoons; collecting
        old tram tickets; brewing pear cider; playing the bassoon; folding paper animals; growing dwarf apple trees;
        repairing fishing nets; competitive archery; baking rye bread; photographing doorways; building kites; judging
        sheepdog trials; mapping caves; learning extinct alphabets; mending porcelain; bell ringing; long-distance skating"""
    ),
    "setting": _items(
        """a flooded mining town; a sanatorium in the hills; an island without children; the last inn before a mountain pass;
        a travelling circus in winter; a border post in the desert; a bankrupt department store; a floating market;
        a monastery with a secret printing press; an abandoned observatory; a ship locked in ice; a village of twins;
        a city under curfew; a boarding school on a cliff; a salt works by a dead lake; a hotel that changes its rooms;
        a prison library; a night train across a continent; a vineyard after a fire; a quarantined harbour"""
    ),
    "hero": _items(
        """a retired cartographer; a deaf piano teacher; a young smuggler; an honest forger; a widowed ferrywoman;
        a village postman; a disgraced judge; a homesick astronaut; a blind perfumer; a travelling barber; an orphaned
        interpreter; a stubborn gravedigger; a runaway heiress; a failed magician; a midwife turned spy; a night watchman;
        a war photographer; a beekeeping nun; a reluctant prince; a circus accountant"""
    ),
    # No region's own language: nobody is translated into the language of the originals.
    "language": _items(
        """Estonian; Basque; Hungarian; Korean; Lithuanian; Khmer; Georgian; Catalan; Hebrew; Vietnamese; Albanian; Welsh;
        Persian; Slovenian; Maltese; Mongolian; Greek; Armenian; Latvian; Tagalog"""
    ),
    "residence": _items(
        """a converted windmill near Haarlem; a houseboat in Utrecht; a stone cottage in Galloway; a flat above a bakery in
        Trieste; a former schoolhouse in Vermont; a farmhouse outside Évora; a tower apartment in Tbilisi; a fishing hut in
        Brittany; a timber house in Tasmania; a courtyard house in Tunis; a railway cottage in Slovenia; a hillside villa in
        Madeira; a monastery guesthouse in Umbria; a loft in Montevideo; a beach bungalow in Kerala"""
    ),
}
