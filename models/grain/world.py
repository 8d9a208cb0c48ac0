"""What grain's little world holds: people, creatures, things, places and their ties.

Facts are stated once here; stories, fact sheets and questions all draw on them, so
that the model meets the same fact in many sentences.
"""

GIRLS = """Amina Lucy Mia Rosa Ella Hana Nora Zoe Lily Sara Ada Ivy Maya Fatou Ines Kira Leila Nina Olga Priya
Ruth Tess Uma Vera Wanda Yara Anna Clara Dora Emma Grace Hope Jane Kate Molly Awa""".split()
BOYS = """Tom Ben Sam Omar Leo Max Jack Kofi Ravi Luca Tim Noah Hugo Ivan Jonas Karim Liam Moussa Nico Oscar
Paul Remy Sami Theo Victor Will Yusuf Adam Bruno Carl David Finn George Henry Isaac Peter""".split()
PETS = """Rusty Pip Biscuit Pepper Button Coco Dusty Ginger Honey Misty Nutmeg Olive Pebble Poppy Shadow Snowy
Sunny Toffee Willow Ziggy Bramble Clover Daisy Fern Hazel Juniper Maple Moss Patch Sprout""".split()

# animal: sound (verb), young, home, food, colour, body covering, what it can do well, legs, size
ANIMALS = {
    "cow": ("moos", "calf", "on a farm", "grass", "brown", "hair", "give milk", 4, "large"),
    "horse": ("neighs", "foal", "in a stable", "hay", "brown", "hair", "run fast", 4, "large"),
    "sheep": ("bleats", "lamb", "on a farm", "grass", "white", "wool", "give wool", 4, "middle-sized"),
    "pig": ("grunts", "piglet", "on a farm", "roots and apples", "pink", "skin", "roll in mud", 4, "middle-sized"),
    "goat": ("bleats", "kid", "on a farm", "leaves", "grey", "hair", "climb rocks", 4, "middle-sized"),
    "hen": ("clucks", "chick", "in a coop", "seeds", "red", "feathers", "lay eggs", 2, "small"),
    "duck": ("quacks", "duckling", "near a pond", "water plants", "yellow", "feathers", "swim", 2, "small"),
    "dog": ("barks", "puppy", "in a house", "meat", "brown", "fur", "guard the house", 4, "middle-sized"),
    "cat": ("meows", "kitten", "in a house", "fish", "black", "fur", "catch mice", 4, "small"),
    "mouse": ("squeaks", "pup", "in a hole", "seeds", "grey", "fur", "hide", 4, "tiny"),
    "rabbit": ("squeaks", "kit", "in a burrow", "carrots", "white", "fur", "hop", 4, "small"),
    "fox": ("barks", "cub", "in a den", "berries and mice", "orange", "fur", "sneak about", 4, "middle-sized"),
    "bear": ("growls", "cub", "in a cave", "honey and fish", "brown", "fur", "catch fish", 4, "large"),
    "wolf": ("howls", "pup", "in the forest", "meat", "grey", "fur", "run far", 4, "middle-sized"),
    "lion": ("roars", "cub", "on the plain", "meat", "yellow", "fur", "hunt", 4, "large"),
    "elephant": ("trumpets", "calf", "on the plain", "leaves and grass", "grey", "skin", "lift logs", 4, "huge"),
    "monkey": ("chatters", "infant", "in the trees", "bananas", "brown", "fur", "climb trees", 4, "middle-sized"),
    "owl": ("hoots", "owlet", "in a tree", "mice", "brown", "feathers", "see in the dark", 2, "small"),
    "crow": ("caws", "chick", "in a tree", "seeds and worms", "black", "feathers", "fly", 2, "small"),
    "frog": ("croaks", "tadpole", "in a pond", "flies", "green", "skin", "jump", 4, "tiny"),
    "bee": ("buzzes", "larva", "in a hive", "nectar", "yellow", "hair", "make honey", 6, "tiny"),
    "squirrel": ("chatters", "kit", "in a tree", "nuts", "red", "fur", "climb trees", 4, "small"),
    "turtle": ("hisses", "hatchling", "near a pond", "plants", "green", "a shell", "swim slowly", 4, "small"),
    "hedgehog": ("snuffles", "hoglet", "under a hedge", "worms", "brown", "spines", "roll into a ball", 4, "small"),
    "penguin": ("honks", "chick", "on the ice", "fish", "black", "feathers", "swim", 2, "middle-sized"),
    "camel": ("grunts", "calf", "in the desert", "dry plants", "brown", "hair", "carry loads", 4, "large"),
    "donkey": ("brays", "foal", "on a farm", "hay", "grey", "hair", "carry loads", 4, "large"),
    "parrot": ("talks", "chick", "in the trees", "seeds and fruit", "green", "feathers", "fly", 2, "small"),
}
ANIMAL_HEROES = "fox bear rabbit mouse owl squirrel hedgehog frog turtle duck goat crow cat dog donkey elephant".split()
TALE_HEROES = "dragon robot princess prince king queen pirate giant wizard knight fairy lion monkey penguin farmer baker".split()

# food: colour, taste, kind, where it grows
FOODS = {
    "apple": ("red", "sweet", "fruit", "on a tree"),
    "banana": ("yellow", "sweet", "fruit", "on a tall plant"),
    "lemon": ("yellow", "sour", "fruit", "on a tree"),
    "orange": ("orange", "sweet", "fruit", "on a tree"),
    "plum": ("purple", "sweet", "fruit", "on a tree"),
    "cherry": ("red", "sweet", "fruit", "on a tree"),
    "pear": ("green", "sweet", "fruit", "on a tree"),
    "mango": ("orange", "sweet", "fruit", "on a tree"),
    "lime": ("green", "sour", "fruit", "on a tree"),
    "strawberry": ("red", "sweet", "fruit", "near the ground"),
    "carrot": ("orange", "sweet", "vegetable", "under the ground"),
    "potato": ("brown", "mild", "vegetable", "under the ground"),
    "onion": ("white", "sharp", "vegetable", "under the ground"),
    "cucumber": ("green", "mild", "vegetable", "on a vine"),
    "tomato": ("red", "fresh", "fruit", "on a vine"),
    "pumpkin": ("orange", "mild", "vegetable", "on a vine"),
    "cabbage": ("green", "mild", "vegetable", "near the ground"),
}
COLOURED = {
    "the sky": "blue", "grass": "green", "snow": "white", "the sun": "yellow", "coal": "black", "a leaf": "green",
    "milk": "white", "chocolate": "brown", "a raven": "black", "blood": "red", "the night": "black", "a cloud": "white",
    "a fire truck": "red", "the sea": "blue", "sand": "yellow", "mud": "brown", "salt": "white", "a rose": "red",
    "a fir tree": "green", "corn": "yellow", "ash": "grey", "a flamingo": "pink",
}
OPPOSITES = [tuple(p.split("-")) for p in """hot-cold big-small tall-short fast-slow up-down in-out day-night
happy-sad old-new open-closed full-empty light-dark wet-dry hard-soft loud-quiet clean-dirty early-late
first-last near-far high-low left-right long-short strong-weak thick-thin young-old sweet-sour rich-poor
heavy-light wide-narrow brave-afraid rough-smooth sharp-blunt true-false push-pull give-take laugh-cry start-stop
win-lose buy-sell above-below before-after always-never front-back good-bad asleep-awake kind-mean deep-shallow
inside-outside north-south east-west black-white summer-winter begin-end love-hate remember-forget
easy-difficult safe-dangerous noisy-silent""".split()]
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()
NUMBERS = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
seventeen eighteen nineteen twenty""".split()
SEASONS = {
    "spring": ("flowers bloom", "mild", "the birds build their nests", "the snow melts"),
    "summer": ("fruit ripens", "hot", "the days are long", "people swim in the lake"),
    "autumn": ("leaves fall", "cool", "farmers bring in the harvest", "birds fly south"),
    "winter": ("snow falls", "cold", "the nights are long", "bears sleep in their caves"),
}
# job: what they do, where, tool
JOBS = {
    "baker": ("bakes bread", "in a bakery", "an oven"),
    "farmer": ("grows food", "on a farm", "a plough"),
    "teacher": ("teaches children", "in a school", "a board"),
    "doctor": ("helps sick people", "in a clinic", "a stethoscope"),
    "carpenter": ("makes things of wood", "in a workshop", "a hammer"),
    "fisherman": ("catches fish", "on a boat", "a net"),
    "tailor": ("sews clothes", "in a shop", "a needle"),
    "gardener": ("looks after plants", "in a garden", "a spade"),
    "painter": ("paints pictures", "in a studio", "a brush"),
    "cook": ("cooks meals", "in a kitchen", "a pot"),
    "miller": ("grinds grain into flour", "in a mill", "a millstone"),
    "librarian": ("looks after books", "in a library", "a lamp"),
    "sailor": ("sails ships", "at sea", "a compass"),
    "shepherd": ("looks after sheep", "on the hills", "a long stick"),
    "blacksmith": ("shapes hot iron", "in a forge", "an anvil"),
    "potter": ("makes bowls of clay", "in a workshop", "a wheel"),
    "nurse": ("takes care of sick people", "in a hospital", "a thermometer"),
    "pilot": ("flies planes", "in the air", "a map"),
    "postman": ("brings letters", "from door to door", "a bag"),
}
# thing: what it is for, where it is kept
TOOLS = {
    "hammer": ("hit nails", "in the toolbox"), "saw": ("cut wood", "in the shed"),
    "spoon": ("eat soup", "in the drawer"), "cup": ("drink water", "on the shelf"),
    "broom": ("sweep the floor", "behind the door"), "key": ("open a lock", "on a hook"),
    "pencil": ("draw and write", "in a box"), "lamp": ("light a room", "on the table"),
    "umbrella": ("stay dry in the rain", "by the door"), "needle": ("sew clothes", "in a tin"),
    "ladder": ("climb up high", "against the wall"), "bucket": ("carry water", "near the well"),
    "blanket": ("keep warm", "on the bed"), "clock": ("tell the time", "on the wall"),
    "map": ("find the way", "in a bag"), "scale": ("weigh things", "in the shop"),
    "knife": ("cut bread", "in the drawer"), "soap": ("wash your hands", "near the tap"),
    "rope": ("tie things together", "in the shed"), "basket": ("carry fruit", "in the kitchen"),
    "spade": ("dig holes", "in the shed"), "kettle": ("boil water", "on the stove"),
    "comb": ("comb your hair", "near the mirror"), "bell": ("call people", "above the door"),
}
BODY = {
    "eyes": "see", "ears": "hear", "nose": "smell", "tongue": "taste", "hands": "hold things", "legs": "walk",
    "teeth": "chew", "lungs": "breathe", "fingers": "touch things", "mouth": "eat and speak",
}
MATERIALS = {
    "bread": "flour and water", "a window": "glass", "a sweater": "wool", "paper": "wood", "cheese": "milk",
    "a book": "paper", "a nail": "iron", "a brick": "clay", "ice": "frozen water", "flour": "grain",
    "butter": "milk", "a candle": "wax", "porridge": "grain and milk", "a table": "wood", "a shoe": "leather",
    "jam": "fruit and sugar", "glass": "sand", "soup": "water and vegetables",
}
TOYS = """ball kite doll drum boat puzzle train bear robot truck whistle balloon rocket bucket yo-yo
bicycle wagon puppet flute marble""".split()
SMALL_THINGS = """key coin ring hat scarf book pencil button shell feather stone map bell ribbon mitten lamp
basket letter spoon watch""".split()
COLOURS = "red blue green yellow purple orange pink white black brown grey golden silver".split()
LOOKS = "small big shiny old new round soft wooden pretty little bright strange tiny lovely smooth".split()

# place: preposition, things seen there, things done there
PLACES = {
    "park": ("in", ["a tall slide", "a pond with ducks", "a green bench", "two swings", "a bed of tulips"],
             ["play on the swings", "feed the ducks", "run on the grass", "fly a kite"]),
    "forest": ("in", ["tall trees", "a squirrel with a nut", "red mushrooms", "a narrow path", "a hollow log"],
               ["look for mushrooms", "listen to the birds", "climb a tree", "follow the path"]),
    "beach": ("on", ["white shells", "a crab in the sand", "small boats", "big waves", "a gull on a rock"],
              ["build a sandcastle", "collect shells", "swim in the sea", "watch the boats"]),
    "garden": ("in", ["rows of beans", "a butterfly on a flower", "an old apple tree", "a snail on a leaf"],
               ["water the plants", "pull the weeds", "pick flowers", "plant seeds"]),
    "market": ("at", ["baskets of fruit", "a man who sold bread", "bright cloth", "a heap of oranges", "sacks of grain"],
               ["buy some fruit", "look at the bright cloth", "smell the fresh bread", "count the oranges"]),
    "farm": ("on", ["a cow and her calf", "fat hens", "a red tractor", "a heap of hay", "a sleepy pig"],
             ["feed the hens", "milk the cow", "gather the eggs", "ride the old horse"]),
    "river": ("by", ["small fish", "a wooden bridge", "smooth stones", "a green frog", "tall reeds"],
              ["throw stones into the water", "catch a fish", "sail a paper boat", "cross the bridge"]),
    "library": ("in", ["shelves full of books", "a round table", "a quiet corner", "a globe", "pictures on the wall"],
                ["read a book about stars", "look for a story", "sit in the quiet corner", "draw a picture"]),
    "kitchen": ("in", ["a big pot", "a bowl of apples", "a bag of flour", "a warm stove", "a jar of honey"],
                ["bake a cake", "cook some soup", "wash the cups", "make pancakes"]),
    "hill": ("on", ["the whole village", "a lonely tree", "a flock of sheep", "far mountains", "yellow flowers"],
             ["roll down the grass", "fly a kite", "look at the clouds", "count the sheep"]),
    "school": ("at", ["a big map", "desks and chairs", "a board with numbers", "a box of chalk"],
               ["learn new words", "count to twenty", "sing a song", "paint a picture"]),
    "zoo": ("at", ["a lion and his cub", "a tall giraffe", "three monkeys", "a pool of penguins"],
            ["watch the monkeys", "look at the penguins", "hear the lion roar"]),
    "lake": ("by", ["white swans", "a small boat", "water lilies", "a man with a fishing rod"],
             ["swim in the cool water", "row the boat", "feed the swans", "catch a fish"]),
    "barn": ("in", ["a pile of straw", "an old ladder", "three kittens", "a sleepy owl", "sacks of grain"],
             ["jump into the straw", "look for eggs", "play hide and seek", "stroke the kittens"]),
}
WEATHER = [
    "It was a sunny day", "The sun was shining", "It was a warm morning", "It was a cold day", "The wind was blowing",
    "It was raining", "Snow lay on the ground", "The sky was grey", "It was a bright afternoon", "The air was cool",
    "It was a windy day", "The birds were singing", "It was a quiet evening", "The clouds were white and soft",
]
CAPITALS = [tuple(p.split("-")) for p in """France-Paris Germany-Berlin Italy-Rome Spain-Madrid England-London
Japan-Tokyo Mali-Bamako Senegal-Dakar Egypt-Cairo Kenya-Nairobi China-Beijing Russia-Moscow Portugal-Lisbon
Greece-Athens Norway-Oslo Sweden-Stockholm Peru-Lima Canada-Ottawa Cuba-Havana Ghana-Accra Austria-Vienna
Poland-Warsaw Ireland-Dublin Finland-Helsinki Turkey-Ankara""".split()]
