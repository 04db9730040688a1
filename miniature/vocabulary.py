"""The words of the miniature world: twenty objects in four groups of siblings, and five styles.

Every concept has a name, aliases (other words for the same thing) and descriptions, which never use the name or
an alias and fit no other concept of the world. Captions, prompts and the concept set are all made from this table.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Words:
    """How one concept is spoken of. `group` holds its siblings; `anchor` is what it is mapped to when erased, none of
    `HELD_OUT`."""

    name: str
    kind: str
    group: str
    aliases: tuple[str, ...]
    anchor: str
    descriptions: tuple[str, ...]

    @property
    def phrase(self) -> str:
        """How the concept is asked for inside a prompt."""
        if self.kind == "style":
            return f"{self.name} style"
        return f"{article(self.name)} {self.name}"


def article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


# fmt: off
OBJECTS: tuple[Words, ...] = (
    Words("cat", "animal", "animals", ("kitty", "feline"), "dog", (
        "a pet with pointed ears and long whiskers", "a furry animal that purrs and says meow",
        "a round face with whiskers and two pointed ears", "a whiskered pet that loves milk and yarn",
        "a soft animal that purrs on the sofa")),
    Words("dog", "animal", "animals", ("puppy", "hound"), "cat", (
        "a pet with floppy ears and a tongue hanging out", "a loyal animal that barks",
        "an animal with hanging ears that fetches a stick", "a barking pet wagging its tail",
        "a face with floppy ears and a pale muzzle")),
    Words("rabbit", "animal", "animals", ("bunny", "hare"), "cat", (
        "an animal with very long ears", "a hopping animal that eats carrots",
        "a face with two tall upright ears and big front teeth", "a furry hopper with long ears",
        "the animal that brings eggs at easter")),
    Words("fox", "animal", "animals", ("vixen", "reynard"), "dog", (
        "a sly forest animal with a pointed chin", "a clever animal with white cheeks and black ear tips",
        "a triangle shaped face with white cheeks", "a cunning animal that steals hens",
        "a sly animal with a narrow snout")),
    Words("mouse", "animal", "animals", ("rodent", "mousie"), "rabbit", (
        "a tiny animal with huge round ears", "a small animal that squeaks and nibbles cheese",
        "a face with two big round ears", "a squeaking animal that loves cheese",
        "a little animal with ears like plates")),
    Words("daisy", "object", "plants", ("marguerite", "oxeye"), "sunflower", (
        "a flower with narrow petals around a small yellow heart", "a meadow flower with thin separate petals",
        "a flower for he loves me he loves me not", "a little lawn flower with a yellow button",
        "long thin petals around a yellow dot")),
    Words("sunflower", "object", "plants", ("helianthus", "girasol"), "daisy", (
        "a tall flower with a big brown disc of seeds", "a flower that turns to follow the light",
        "a huge flower whose seeds give oil", "a flower with a large dark heart and short pointed petals",
        "a giant bloom full of brown seeds")),
    Words("tulip", "object", "plants", ("tulipa", "lale"), "daisy", (
        "a flower shaped like a cup", "the famous spring flower of holland",
        "a cup shaped bloom with three points", "a spring bulb flower from the dutch fields",
        "a goblet of petals on a straight stem")),
    Words("rose", "object", "plants", ("rosebud", "rosa"), "tulip", (
        "a flower with thorns given on valentines day", "a romantic bloom with petals in a spiral",
        "the flower of love with curled petals", "a thorny flower that lovers give",
        "a bloom of petals wound around each other")),
    Words("cactus", "object", "plants", ("saguaro", "succulent"), "tulip", (
        "a desert plant with spines", "a prickly plant with two arms in a pot",
        "a plant that needs almost no water", "a spiny column with arms in a brown pot",
        "a prickly green thing from the desert")),
    Words("car", "object", "vehicles", ("automobile", "sedan"), "truck", (
        "a low vehicle with four doors for a family", "a vehicle you park in the garage",
        "a small road vehicle with a rounded cabin", "what a family drives to the beach",
        "a low road vehicle with two windows")),
    Words("bus", "object", "vehicles", ("omnibus", "coach"), "car", (
        "a long vehicle with many windows for passengers", "a big road vehicle that stops for passengers",
        "a vehicle that takes children to school", "public transport on the road with a row of windows",
        "a long box on wheels with a row of windows")),
    Words("truck", "object", "vehicles", ("lorry", "semi"), "car", (
        "a vehicle that hauls cargo", "a heavy road vehicle with a big white cargo box",
        "a vehicle with a cab and a large box behind it", "what delivers heavy goods on the highway",
        "a freight hauler with a driver cab in front")),
    Words("train", "object", "vehicles", ("locomotive", "railway engine"), "bus", (
        "a vehicle that runs on rails", "a steam engine with a smoking chimney",
        "a machine on tracks with puffs of smoke", "what arrives at the station on rails",
        "a puffing engine with a chimney on tracks")),
    Words("boat", "object", "vehicles", ("ship", "yacht"), "car", (
        "a vessel with white sails", "something that floats and is driven by wind",
        "a hull with a mast and two sails", "what a sailor steers across the sea",
        "a vessel gliding over the water")),
    Words("apple", "object", "fruit", ("pippin", "pomme"), "pear", (
        "the fruit that keeps the doctor away", "a round fruit with a stalk and a leaf",
        "the fruit that fell on the head of newton", "the fruit baked in the classic pie",
        "a round crunchy fruit with one leaf")),
    Words("pear", "object", "fruit", ("bartlett", "poire"), "apple", (
        "a fruit that is narrow at the top and wide below", "a bell shaped fruit",
        "a sweet fruit shaped like a light bulb", "a fruit with a slim neck and a fat belly",
        "a juicy fruit with a thin neck")),
    Words("banana", "object", "fruit", ("plantain", "musa"), "pear", (
        "a long curved fruit", "the fruit that monkeys love to peel",
        "a bent fruit shaped like a smile", "a tropical fruit with a slippery peel",
        "a fruit curved like a crescent moon")),
    Words("cherry", "object", "fruit", ("cherries", "morello"), "apple", (
        "two little round fruits hanging on stalks", "a pair of small fruits on two long stems",
        "the small fruit on top of a sundae", "twin round fruits joined by their stalks",
        "a pair of round fruits with a stone inside")),
    Words("grape", "object", "fruit", ("grapes", "muscat"), "cherry", (
        "a bunch of many little berries", "the fruit that wine is made of",
        "a hanging cluster of round berries", "berries in a bunch from the vineyard",
        "a heap of small berries shaped like a triangle")),
)

STYLES: tuple[Words, ...] = (
    Words("neon", "style", "styles", ("fluorescent", "glowstick"), "blueprint", (
        "drawn with glowing lines on black", "with bright shining tubes in the dark",
        "made of light tubes at night", "as a glowing sign in the dark", "with luminous outlines on black")),
    Words("watercolor", "style", "styles", ("aquarelle", "wash painting"), "sketch", (
        "painted with soft pale colors that bleed", "with wet diluted paint on paper",
        "in soft washes of pale paint", "with gentle pale stains on white paper",
        "painted wet and pale with blurry edges")),
    Words("sketch", "style", "styles", ("pencil drawing", "doodle"), "watercolor", (
        "drawn with gray lines on white paper", "with only thin gray lines and no color",
        "scribbled with graphite on a page", "as bare gray outlines on a white page", "in graphite without any color")),
    Words("sepia", "style", "styles", ("daguerreotype", "antique photograph"), "sketch", (
        "in brown tones like an old photo", "with faded brown colors from a hundred years ago",
        "as a faded brown picture from grandmothers album", "in the yellowed brown of old times",
        "all in shades of brown with dark corners")),
    Words("blueprint", "style", "styles", ("cyanotype", "technical plan"), "sketch", (
        "drawn with white lines on blue paper", "as an engineers drawing on blue",
        "with white construction lines on deep blue", "like an architects plan in white and blue",
        "in white lines on a deep blue sheet")),
)
# fmt: on

CONCEPTS: tuple[Words, ...] = OBJECTS + STYLES
HELD_OUT = frozenset(("fox", "mouse", "rose", "cactus", "train", "boat", "banana", "grape", "neon", "sepia"))
"""Two of each five siblings: judged, and shown to no method that is to forget another."""
NAMES: tuple[str, ...] = tuple(words.name for words in CONCEPTS)
BY_NAME: dict[str, Words] = {words.name: words for words in CONCEPTS}


def siblings(name: str) -> list[str]:
    """The other concepts of the same group, in the table's order."""
    return [words.name for words in CONCEPTS if words.group == BY_NAME[name].group and words.name != name]
