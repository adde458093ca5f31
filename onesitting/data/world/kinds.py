"""Kinds of animals, objects, foods, places and jobs, and what is true of all of a kind."""

from __future__ import annotations

from dataclasses import dataclass


def rows(table: str) -> list[list[str]]:
    """Lines of a `|` table as lists of stripped fields."""
    return [[cell.strip() for cell in line.split("|")] for line in table.strip().splitlines()]


@dataclass(frozen=True, slots=True)
class AnimalKind:
    """What is true of every animal of a kind."""

    name: str
    plural: str
    baby: str
    foods: tuple[str, ...]
    sound: str
    """Third person: barks."""
    home: str
    """Where it sleeps: `a stable`."""
    legs: int
    cover: str
    skill: str
    """What it can do: `run fast`."""
    group: str
    """pet, farm, wild."""
    colours: tuple[str, ...]


_ANIMALS = """
dog|dogs|puppy|meat,bones|barks|kennel|4|fur|fetch a ball|pet|brown,black,white
cat|cats|kitten|fish,milk|meows|basket|4|fur|climb trees|pet|black,grey,white,orange
rabbit|rabbits|baby rabbit|carrots,lettuce|squeaks|hutch|4|fur|hop fast|pet|white,brown,grey
hamster|hamsters|baby hamster|seeds,nuts|squeaks|cage|4|fur|run in a wheel|pet|brown,white,orange
parrot|parrots|chick|seeds,fruit|talks|cage|2|feathers|learn words|pet|green,red,blue
goldfish|goldfish|baby goldfish|fish flakes|makes no sound|bowl|0|scales|swim|pet|orange
turtle|turtles|baby turtle|lettuce,berries|makes no sound|pond|4|a hard shell|live very long|pet|green,brown
horse|horses|foal|hay,oats|neighs|stable|4|hair|pull a cart|farm|brown,black,white
cow|cows|calf|grass,hay|moos|barn|4|hair|give milk|farm|brown,black,white
sheep|sheep|lamb|grass,hay|bleats|barn|4|wool|give wool|farm|white,black
goat|goats|kid|grass,leaves|bleats|shed|4|hair|climb rocks|farm|white,brown,grey
pig|pigs|piglet|corn,apples|grunts|sty|4|thin hair|find roots|farm|pink
hen|hens|chick|corn,seeds|clucks|henhouse|2|feathers|lay eggs|farm|brown,white,red
duck|ducks|duckling|corn,water plants|quacks|nest|2|feathers|swim and fly|farm|white,brown
goose|geese|gosling|grass,corn|honks|nest|2|feathers|guard a farm|farm|white,grey
donkey|donkeys|foal|hay,carrots|brays|stable|4|hair|carry bags|farm|grey,brown
fox|foxes|cub|mice,berries|barks|den|4|fur|run quietly|wild|red,orange
bear|bears|cub|honey,berries|growls|cave|4|fur|climb and swim|wild|brown,black
wolf|wolves|cub|meat|howls|den|4|fur|smell things far away|wild|grey,black
squirrel|squirrels|baby squirrel|nuts,acorns|chatters|tree|4|fur|hide nuts|wild|red,grey
hedgehog|hedgehogs|baby hedgehog|beetles,worms|snuffles|pile of leaves|4|spines|roll into a ball|wild|brown
owl|owls|owlet|mice|hoots|hollow tree|2|feathers|see in the dark|wild|brown,white
mouse|mice|baby mouse|cheese,seeds|squeaks|hole|4|fur|slip through small holes|wild|grey,brown,white
frog|frogs|tadpole|flies|croaks|pond|4|smooth skin|jump far|wild|green
robin|robins|chick|worms,seeds|sings|nest|2|feathers|sing sweetly|wild|brown
deer|deer|fawn|grass,leaves|calls softly|forest|4|fur|leap over logs|wild|brown
bee|bees|young bee|sweet flower juice|buzzes|hive|6|tiny hairs|make honey|wild|yellow
crow|crows|chick|seeds,worms|caws|nest|2|feathers|solve puzzles|wild|black
swan|swans|cygnet|water plants|hisses|nest|2|feathers|glide on water|wild|white
otter|otters|pup|fish|whistles|river bank|4|fur|swim and dive|wild|brown
badger|badgers|cub|worms,roots|growls|tunnel|4|fur|dig deep holes|wild|grey
snail|snails|baby snail|leaves|makes no sound|shell|0|a hard shell|hide in a shell|wild|brown
butterfly|butterflies|caterpillar|sweet flower juice|makes no sound|meadow|6|tiny scales|fly from flower to flower|wild|yellow,blue,white
spider|spiders|baby spider|flies|makes no sound|web|8|tiny hairs|spin webs|wild|black,brown
whale|whales|calf|small fish|sings|sea|0|smooth skin|dive deep|wild|blue,grey
seagull|seagulls|chick|fish|cries|cliff|2|feathers|ride the wind|wild|white
"""
ANIMALS: dict[str, AnimalKind] = {
    r[0]: AnimalKind(
        r[0],
        r[1],
        r[2],
        tuple(r[3].split(",")),
        r[4],
        r[5],
        int(r[6]),
        r[7],
        r[8],
        r[9],
        tuple(r[10].split(",")),
    )
    for r in rows(_ANIMALS)
}


@dataclass(frozen=True, slots=True)
class ObjectKind:
    """A thing that people own, carry, buy, lose and break."""

    name: str
    plural: str
    materials: tuple[str, ...]
    shop: str
    price: tuple[int, int]
    """Lowest and highest price in coins; the world fixes one."""
    use: str
    """With `to`: what it is for."""
    floats: bool
    fragile: bool
    group: str
    """toy, clothes, tool, kitchen, book, music, garden, home."""


_OBJECTS = """
kite|kites|paper,cloth|toy shop|6-12|play in the wind|y|y|toy
ball|balls|rubber,leather|toy shop|3-8|play in the park|y|n|toy
doll|dolls|cloth,wood|toy shop|7-14|play at home|y|n|toy
toy boat|toy boats|wood,paper|toy shop|5-11|sail on the pond|y|y|toy
drum|drums|wood,tin|music shop|8-15|make loud music|y|n|music
flute|flutes|wood,silver|music shop|12-20|play soft music|y|n|music
whistle|whistles|tin,wood|toy shop|2-5|call a dog|n|n|toy
puzzle|puzzles|wood,paper|toy shop|5-10|pass a rainy day|y|n|toy
top|tops|wood,tin|toy shop|2-6|spin on the floor|y|n|toy
toy train|toy trains|wood,tin|toy shop|9-16|play on the floor|n|y|toy
balloon|balloons|rubber|toy shop|1-3|decorate a party|y|y|toy
hat|hats|straw,wool|clothes shop|5-12|keep off the sun|y|n|clothes
scarf|scarves|wool,silk|clothes shop|4-9|keep warm|y|n|clothes
coat|coats|wool,leather|clothes shop|18-30|keep warm in winter|n|n|clothes
boot|boots|leather,rubber|clothes shop|9-16|walk through mud|n|n|clothes
glove|gloves|wool,leather|clothes shop|3-7|keep a hand warm|n|n|clothes
button|buttons|bone,wood|clothes shop|1-2|close a coat|n|n|clothes
ring|rings|silver,gold|jewel shop|25-40|decorate a finger|n|n|jewel
necklace|necklaces|silver,glass|jewel shop|15-28|look pretty at a party|n|n|jewel
umbrella|umbrellas|cloth,silk|clothes shop|8-14|stay dry in the rain|y|y|clothes
basket|baskets|straw,wood|home shop|4-8|carry food|y|n|home
bag|bags|cloth,leather|home shop|5-10|carry things|n|n|home
box|boxes|wood,paper|home shop|3-7|store things|y|n|home
lamp|lamps|glass,brass|home shop|10-18|read at night|n|y|home
clock|clocks|wood,brass|home shop|14-24|tell the time|n|y|home
mirror|mirrors|glass|home shop|9-17|see one's face|n|y|home
chair|chairs|wood|home shop|12-20|sit down|y|y|home
blanket|blankets|wool,cloth|home shop|8-15|keep warm at night|n|n|home
candle|candles|wax|home shop|1-3|light a dark room|y|n|home
key|keys|brass,iron|tool shop|2-4|open a door|n|n|home
coin purse|coin purses|leather,cloth|home shop|4-8|hold coins|n|n|home
cup|cups|clay,glass|kitchen shop|2-5|hold tea|n|y|kitchen
plate|plates|clay,glass|kitchen shop|3-6|serve meals|n|y|kitchen
bowl|bowls|clay,wood|kitchen shop|3-6|serve soup|n|y|kitchen
spoon|spoons|wood,silver|kitchen shop|1-4|stir soup|y|n|kitchen
pot|pots|iron,clay|kitchen shop|8-14|cook soup|n|y|kitchen
teapot|teapots|clay,glass|kitchen shop|9-15|make tea|n|y|kitchen
jar|jars|glass,clay|kitchen shop|2-5|store jam|n|y|kitchen
vase|vases|glass,clay|kitchen shop|7-13|hold flowers|n|y|kitchen
hammer|hammers|iron|tool shop|6-11|hit nails|n|n|tool
saw|saws|iron|tool shop|8-13|cut wood|n|n|tool
rope|ropes|cotton|tool shop|4-8|tie things|y|n|tool
ladder|ladders|wood|tool shop|12-20|reach high places|y|y|tool
bucket|buckets|tin,wood|tool shop|4-8|carry water|n|n|tool
brush|brushes|wood|art shop|2-5|paint pictures|y|n|art
pencil|pencils|wood|art shop|1-3|draw pictures|y|y|art
notebook|notebooks|paper|book shop|3-6|write things down|n|n|book
book|books|paper|book shop|6-12|read stories|n|n|book
map|maps|paper|book shop|4-9|find the way|n|n|book
spade|spades|iron,wood|garden shop|6-12|dig holes|n|n|garden
watering can|watering cans|tin|garden shop|7-12|water plants|n|n|garden
flower pot|flower pots|clay|garden shop|2-6|grow flowers|n|y|garden
fishing rod|fishing rods|wood|tool shop|10-16|catch fish|y|y|tool
sled|sleds|wood|toy shop|12-20|slide on snow|y|y|toy
bicycle|bicycles|iron|tool shop|35-60|ride to school|n|y|tool
bell|bells|brass,silver|music shop|5-10|call people|n|n|music
guitar|guitars|wood|music shop|22-38|play songs|y|y|music
lantern|lanterns|tin,glass|home shop|8-14|walk at night|n|y|home
compass|compasses|brass|book shop|10-18|find north|n|n|tool
shell|shells|bone|jewel shop|1-3|listen to the sea|n|n|jewel
"""
OBJECTS: dict[str, ObjectKind] = {
    r[0]: ObjectKind(
        r[0],
        r[1],
        tuple(r[2].split(",")),
        r[3],
        (int(r[4].split("-")[0]), int(r[4].split("-")[1])),
        r[5],
        r[6] == "y",
        r[7] == "y",
        r[8],
    )
    for r in rows(_OBJECTS)
}


@dataclass(frozen=True, slots=True)
class FoodKind:
    """Something to eat; `one` is how a single helping is called (`a loaf of bread`)."""

    name: str
    one: str
    plural: str
    """Several helpings: `loaves of bread`."""
    maker: str
    """Job or shop that sells it."""
    price: tuple[int, int]
    taste: str
    source: str
    """What it is made from or where it grows."""


_FOODS = """
bread|a loaf of bread|loaves of bread|bakery|2-4|fresh|flour and water
cake|a cake|cakes|bakery|8-14|sweet|flour, eggs and sugar
pie|a pie|pies|bakery|6-10|sweet|fruit and flour
bun|a bun|buns|bakery|1-2|soft|flour and milk
cookie|a cookie|cookies|bakery|1-2|sweet|butter and sugar
pancake|a pancake|pancakes|bakery|1-3|soft|eggs, flour and milk
apple|an apple|apples|fruit stall|1-2|sweet|apple trees
pear|a pear|pears|fruit stall|1-2|sweet|pear trees
plum|a plum|plums|fruit stall|1-2|sweet|plum trees
orange|an orange|oranges|fruit stall|2-3|juicy|orange trees
lemon|a lemon|lemons|fruit stall|1-3|sour|lemon trees
melon|a melon|melons|fruit stall|4-7|juicy|long green plants
peach|a peach|peaches|fruit stall|2-4|juicy|peach trees
cherry|a bag of cherries|bags of cherries|fruit stall|3-5|sweet|cherry trees
strawberry|a bowl of strawberries|bowls of strawberries|fruit stall|3-6|sweet|small plants
carrot|a carrot|carrots|vegetable stall|1-2|crisp|the ground
potato|a bag of potatoes|bags of potatoes|vegetable stall|3-5|plain|the ground
tomato|a tomato|tomatoes|vegetable stall|1-2|juicy|tall green plants
onion|an onion|onions|vegetable stall|1-2|sharp|the ground
cabbage|a cabbage|cabbages|vegetable stall|2-4|fresh|the ground
pumpkin|a pumpkin|pumpkins|vegetable stall|4-8|mild|long green plants
cheese|a piece of cheese|pieces of cheese|dairy|3-6|salty|milk
milk|a bottle of milk|bottles of milk|dairy|2-3|fresh|cows
butter|a block of butter|blocks of butter|dairy|3-5|rich|cream
egg|an egg|eggs|dairy|1-2|plain|hens
honey|a jar of honey|jars of honey|honey stall|5-8|sweet|bees
jam|a jar of jam|jars of jam|honey stall|4-6|sweet|fruit and sugar
fish|a fish|fish|fish stall|4-7|salty|the river
soup|a bowl of soup|bowls of soup|inn|3-5|warm|vegetables and water
tea|a cup of tea|cups of tea|inn|1-2|warm|leaves and hot water
"""
FOODS: dict[str, FoodKind] = {
    r[0]: FoodKind(r[0], r[1], r[2], r[3], (int(r[4].split("-")[0]), int(r[4].split("-")[1])), r[5], r[6])
    for r in rows(_FOODS)
}


@dataclass(frozen=True, slots=True)
class PlaceKind:
    """A kind of place: how to be there, and what is there."""

    name: str
    at: str
    """Preposition of being there: at, in, by, on."""
    things: tuple[str, ...]
    """What one sees there, with article."""
    deed: str
    """What people do there, base form."""
    outdoors: bool


_PLACES = """
market|at|bright stalls,baskets of fruit,many people,a man with a loud voice|buy and sell things|y
river|by|tall reeds,smooth stones,a small bridge,clear water|fish and swim|y
mill|at|a big wheel,sacks of flour,white dust|grind corn into flour|n
school|at|rows of desks,a big map,shelves of books|read and write|n
park|in|green benches,old trees,a round pond,a path with flowers|play games|y
forest|in|tall trees,soft moss,a narrow path,fallen leaves|pick mushrooms|y
beach|on|yellow sand,small shells,white waves,a row of boats|build castles of sand|y
farm|on|a red barn,brown cows,a muddy yard,fields of corn|grow food|y
library|in|high shelves,quiet readers,a soft chair|borrow books|n
bakery|at|warm bread,trays of buns,a hot oven|buy bread|n
garden|in|rows of beans,a stone wall,yellow flowers,a wooden gate|grow flowers|y
hill|on|short grass,a lone tree,a wide view,grey rocks|fly kites|y
bridge|on|strong wooden boards,fast water below,an old lamp|watch the boats|y
station|at|long trains,a big clock,people with bags|wait for trains|n
harbour|at|fishing boats,nets and ropes,noisy gulls|unload fish|y
meadow|in|wild flowers,long grass,busy bees|look for butterflies|y
lake|by|calm water,a little boat,a wooden dock,water birds|row boats|y
town square|in|a stone fountain,a few pigeons,wide steps|meet friends|y
inn|at|a warm fire,long tables,a big pot of soup|eat and rest|n
barn|in|dry hay,an old cart,a wooden ladder|store hay|n
workshop|in|sharp tools,boards and nails,a strong table|repair things|n
orchard|in|rows of apple trees,full baskets,sweet fruit|pick apples|y
cave|in|a narrow entrance,dark walls,drops of water|hide from the rain|n
castle|at|thick walls,a high tower,a heavy door|learn about old kings|n
playground|at|two swings,a tall slide,a box of sand|play after school|y
post office|at|bags of letters,a long line,small stamps|send letters|n
"""
PLACES: dict[str, PlaceKind] = {
    r[0]: PlaceKind(r[0], r[1], tuple(r[2].split(",")), r[3], r[4] == "y") for r in rows(_PLACES)
}


@dataclass(frozen=True, slots=True)
class JobKind:
    """A job: where it is done, what is done, and the tool that the job needs."""

    name: str
    place: str
    deed: str
    """Base form: `bake bread`."""
    does: str
    """Third person: `bakes bread`."""
    tool: str
    gear: str
    """What one wears or sees at work."""
    made: str
    """What others get from the work."""


_JOBS = """
baker|bakery|bake bread and cakes|bakes bread and cakes|a hot oven|a white apron|fresh bread
teacher|school|teach children to read|teaches children to read|a piece of chalk|a neat coat|lessons
farmer|farm|grow corn and keep cows|grows corn and keeps cows|a tractor|high boots|milk and corn
miller|mill|grind corn into flour|grinds corn into flour|a heavy millstone|a dusty hat|flour
fisher|harbour|catch fish|catches fish|a wide net|a blue cap|fish
doctor|doctor's house|help sick people|helps sick people|a small lamp|a white coat|medicine
carpenter|workshop|make chairs and tables|makes chairs and tables|a sharp saw|a leather belt|chairs and tables
librarian|library|look after books|looks after books|a big stamp|round glasses|books to borrow
gardener|garden|plant flowers and trees|plants flowers and trees|a spade|green gloves|flowers
blacksmith|forge|make things of iron|makes things of iron|a heavy hammer|a thick apron|iron tools
tailor|clothes shop|sew coats and dresses|sews coats and dresses|a thin needle|a soft tape|clothes
potter|pottery|make pots from clay|makes pots from clay|a spinning wheel|a grey apron|pots and cups
shepherd|meadow|watch over the sheep|watches over the sheep|a long stick|a warm coat|wool
postman|post office|bring letters|brings letters|a red bag|a blue jacket|letters
cook|inn|cook soup and meat|cooks soup and meat|a big pot|a tall white hat|hot meals
painter|studio|paint pictures|paints pictures|a fine brush|a coat full of spots|pictures
musician|town square|play songs|plays songs|a violin|a feather in the hat|music
beekeeper|orchard|look after bees|looks after bees|a smoke can|a hat with a net|honey
sailor|harbour|sail ships|sails ships|a compass|a striped shirt|goods from far away
clockmaker|clock shop|repair clocks|repairs clocks|a tiny screwdriver|a strong glass|clocks
shoemaker|shoe shop|make boots and shoes|makes boots and shoes|a sharp awl|a brown apron|boots
weaver|weaving room|weave cloth|weaves cloth|a wooden loom|a colourful shawl|cloth
nurse|doctor's house|care for sick people|cares for sick people|clean bandages|a white cap|care
firefighter|fire station|put out fires|puts out fires|a long hose|a yellow helmet|safety
vet|animal house|help sick animals|helps sick animals|a small torch|a green coat|healthy animals
train driver|station|drive the train|drives the train|a steel lever|a dark cap|rides to other towns
"""
JOBS: dict[str, JobKind] = {r[0]: JobKind(*r) for r in rows(_JOBS)}
