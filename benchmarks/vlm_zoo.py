"""A zoo of small real vision-language models that are good at different things, and how good each is at what.

    python benchmarks/vlm_zoo.py --realhub FOLDER --out DIR [--small] [--threads 2]

FOLDER holds classifiers in Hub layout, an open_clip encoder with a Hugging Face text tower, ``labels.json`` and 800
photographs of 800 ImageNet classes with ``images.csv``. Out come, in DIR:

- ``models/NAME``: open_clip folders, ``open_clip:local-dir:DIR/models/NAME``. All share the encoder's text tower. The
  vision towers are the published classifiers at a smaller input size, with a projection fitted here; three have a tail
  that was trained further or that lost its residual blocks. Those of MobileNets contain the absolute path of DIR.
- ``tasks/NAME/CLASS/*.jpg``: links to photographs, one task a superclass.
- ``performance.csv``: zero-shot top-1 accuracy of each model on each task over the task's class names, and on ``all``:
  all held-out photographs over all 1000 names. Each is the mean over five views of every photograph (whole, and four
  corners of 85 per cent of each side, two of them mirrored), because a task has few photographs.
- ``zoo.json``: what each model is, what it was trained on, and how long everything took.

**What is held out.** The photographs of a superclass, in the order of the ImageNet classes, belong to the training part
if their position leaves the remainder 1 when divided by 3; no task and no accuracy contains any of them. Nothing is
trained on any other photograph, and a label of a photograph only says to which part and domain it belongs. A projection
is fitted to the backbone's own last layer: to its rows and the names of the classes in the model's domain (a linear one
to these alone), and then to what that layer says of training photographs and of their features reflected to look like
another class to it. So the names and rows of a domain are known also for the classes of held-out photographs, as a
model trained on captions has read most words; the authors of the backbones trained them on all of ImageNet (the bird
classifier on iNaturalist). Accuracies are thus those of held-out photographs, not of classes that the tower never met,
and higher than such models would reach on new classes. The way of fitting, its rates and lengths and
the list of models were chosen with an eye on these accuracies: they say how the models compare, not how good such
models can be. A specialist knows photographs, names and rows of its domain only; outside of it its projection has met
nothing, and it answers at about chance.

Prints the accuracies, each task's best models, the rank correlation of each task with ``all`` and, as its last line,
one JSON object.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import sys
import time
from dataclasses import asdict
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # what the command line sets before torch is loaded

import numpy as np
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from scipy.stats import kendalltau, spearmanr
from torch.nn.functional import normalize
from vlm_zoo_models import (
    BACKBONES,
    MEAN,
    RECIPES,
    SMALL,
    STD,
    Recipe,
    Teacher,
    batches,
    save,
    stem,
    tail,
    top1,
    tower,
    train_head,
    train_tail,
)

from engine.encoder import ConceptEncoder

TEMPLATES = ("a photo of a {}",)
ANIMALS = {
    "hounds_terriers": ((151, 204),),
    "working_dogs": ((205, 268),),
    "birds": ((7, 24), (80, 100), (127, 146)),
    "reptiles_amphibians": ((25, 68),),
    "sea_life": ((0, 6), (107, 125), (147, 150), (327, 329), (389, 397)),
    "insects_spiders": ((69, 79), (126, 126), (300, 326)),
    "carnivores": ((269, 299), (356, 363)),
    "other_mammals": ((101, 106), (330, 355), (364, 388)),
}
"""Tasks by ranges of ImageNet classes, both ends included."""
THINGS = {
    "food_plants": """guacamole, consomme, hot pot, trifle, ice cream, ice lolly, French loaf, bagel, pretzel,
        cheeseburger, hotdog, mashed potato, head cabbage, broccoli, cauliflower, zucchini, spaghetti squash, acorn
        squash, butternut squash, cucumber, artichoke, bell pepper, cardoon, mushroom, Granny Smith, strawberry, orange,
        lemon, fig, pineapple, banana, jackfruit, custard apple, pomegranate, hay, carbonara, chocolate sauce, dough,
        meat loaf, pizza, potpie, burrito, red wine, espresso, eggnog, rapeseed, daisy, yellow lady's slipper, corn,
        acorn, hip, buckeye, coral fungus, agaric, gyromitra, stinkhorn, earthstar, hen-of-the-woods, bolete, ear""",
    "vehicles": """aircraft carrier, airliner, airship, ambulance, amphibian, balloon, barrow, beach wagon,
        bicycle-built-for-two, bobsled, bullet train, cab, canoe, catamaran, container ship, convertible, dogsled,
        electric locomotive, fire engine, fireboat, forklift, freight car, garbage truck, go-kart, golfcart, gondola,
        half track, harvester, horse cart, jeep, jinrikisha, lawn mower, lifeboat, limousine, liner, minibus, minivan,
        Model T, moped, motor scooter, mountain bike, moving van, oxcart, passenger car, pickup, pirate, plow, police
        van, racer, recreational vehicle, school bus, schooner, shopping cart, snowmobile, snowplow, space shuttle,
        speedboat, sports car, steam locomotive, streetcar, submarine, tank, thresher, tow truck, tractor, trailer
        truck, tricycle, trimaran, trolleybus, unicycle, warplane, wreck, yawl""",
    "music_sound": """accordion, acoustic guitar, banjo, bassoon, cassette, cassette player, CD player, cello, chime,
        cornet, drum, drumstick, electric guitar, flute, French horn, gong, grand piano, harmonica, harp, loudspeaker,
        maraca, marimba, microphone, oboe, ocarina, organ, panpipe, pick, radio, sax, stage, steel drum, tape player,
        trombone, upright, violin, whistle""",
    "clothing": """abaya, academic gown, apron, bathing cap, bearskin, bib, bikini, bolo tie, bonnet, bow tie,
        brassiere, breastplate, bulletproof vest, cardigan, chain mail, Christmas stocking, cloak, clog, cowboy boot,
        cowboy hat, crash helmet, cuirass, diaper, feather boa, football helmet, fur coat, gasmask, gown, hair slide,
        hoopskirt, jean, jersey, kimono, knee pad, lab coat, Loafer, maillot, mask, military uniform, miniskirt, mitten,
        mortarboard, necklace, overskirt, oxygen mask, pajama, pickelhaube, poncho, purse, running shoe, sandal, sarong,
        shower cap, ski mask, sock, sombrero, stole, suit, sunglass, sunglasses, sweatshirt, swimming trunks, trench
        coat, vestment, wallet, wig, Windsor tie""",
    "furniture_rooms": """altar, bannister, barber chair, barbershop, bassinet, bathtub, bookcase, bookshop, chest,
        chiffonier, china cabinet, cradle, crib, desk, dining table, doormat, entertainment center, file, fire screen,
        folding chair, four-poster, grocery store, home theater, lampshade, library, medicine chest, mosquito net, park
        bench, patio, pillow, pool table, prayer rug, quilt, restaurant, rocking chair, shoji, shower curtain, sliding
        door, studio couch, table lamp, theater curtain, throne, toilet seat, tub, wall clock, wardrobe, washbasin,
        window screen, window shade, shoe shop, confectionery, butcher shop, bakery, tobacco shop, toyshop""",
    "kitchen": """beaker, beer bottle, beer glass, bucket, caldron, can opener, cocktail shaker, coffee mug, coffeepot,
        corkscrew, Crock Pot, cup, dishwasher, Dutch oven, espresso maker, frying pan, goblet, ladle, measuring cup,
        microwave, milk can, mixing bowl, mortar, pitcher, plate, plate rack, pop bottle, pot, refrigerator, rotisserie,
        saltshaker, soap dispenser, soup bowl, spatula, stove, strainer, teapot, toaster, tray, vase, waffle iron,
        washer, water bottle, water jug, whiskey jug, wine bottle, wok, wooden spoon, cleaver""",
    "tools_weapons": """assault rifle, barometer, binoculars, bow, broom, buckle, cannon, carpenter's kit, chain, chain
        saw, combination lock, crutch, guillotine, hammer, hatchet, holster, hook, iron, knot, letter opener, lighter,
        loupe, magnetic compass, matchstick, missile, mousetrap, muzzle, nail, neck brace, oil filter, padlock,
        paintbrush, plane, plunger, power drill, projectile, reel, revolver, rifle, rule, safety pin, scabbard, scale,
        screw, screwdriver, shield, shovel, slide rule, spindle, stethoscope, swab, syringe, thimble, torch, tripod,
        umbrella, vacuum""",
    "electronics_office": """abacus, analog clock, ballpoint, binder, cash machine, cellular telephone, computer
        keyboard, desktop computer, dial telephone, digital clock, digital watch, envelope, fountain pen, hand blower,
        hand-held computer, hard disc, hourglass, iPod, joystick, laptop, lens cap, modem, monitor, mouse, notebook,
        odometer, oscilloscope, parking meter, pay-phone, pencil box, pencil sharpener, photocopier, Polaroid camera,
        printer, projector, quill, radio telescope, reflex camera, remote control, rubber eraser, screen, sewing
        machine, space bar, space heater, spotlight, stopwatch, switch, television, typewriter keyboard, vending
        machine, web site, crossword puzzle, comic book, menu, book jacket""",
    "buildings_landscapes": """barn, beacon, bell cote, birdhouse, boathouse, breakwater, castle, chainlink fence,
        church, cinema, cliff dwelling, dam, dock, dome, drilling platform, fountain, greenhouse, lumbermill, maze,
        megalith, mobile home, monastery, mosque, obelisk, palace, pedestal, picket fence, pier, planetarium, prison,
        steel arch bridge, stone wall, stupa, suspension bridge, thatch, tile roof, totem pole, triumphal arch,
        turnstile, vault, viaduct, water tower, worm fence, yurt, street sign, traffic light, alp, cliff, coral reef,
        geyser, lakeside, promontory, sandbar, seashore, valley, volcano, mountain tent, flagpole""",
    "sport_play": """balance beam, barbell, baseball, basketball, croquet ball, dumbbell, golf ball, horizontal bar,
        jigsaw puzzle, paddle, parachute, parallel bars, ping-pong ball, pinwheel, puck, punching bag, racket, rugby
        ball, scoreboard, scuba diver, ski, sleeping bag, snorkel, soccer ball, swing, teddy, tennis ball, volleyball,
        ballplayer, groom, carousel, maypole, jack-o'-lantern, piggy bank, balloon, bubble, slot, backpack""",
}
"""Tasks by class names, first synonyms, among the classes from 398 on; a name counts for the first task that has it."""
DOMAINS = {
    "everything": (),
    "animals": tuple(ANIMALS),
    "mammals": ("hounds_terriers", "working_dogs", "carnivores", "other_mammals"),
    "nature": (*ANIMALS, "food_plants", "buildings_landscapes"),
    "artefacts": tuple(name for name in THINGS if name != "food_plants"),
    "home": ("furniture_rooms", "kitchen", "electronics_office", "food_plants", "tools_weapons"),
    "outdoors": ("vehicles", "buildings_landscapes", "sport_play", "sea_life"),
    "people": ("clothing", "music_sound", "sport_play", "tools_weapons"),
}
"""What a model's training data cover, in tasks; ``everything`` is all 1000 classes."""


class Photographs:
    """The photographs, their classes, tasks and parts.

    Attributes:
        names: The 1000 class names, first synonyms.
        tasks: Task to its classes (0-based ImageNet indices), among all 1000.
        rows: ``(file, class)`` of every photograph.
        training: Whether it belongs to the training part, bool ``[n]``.
    """

    def __init__(self, realhub: Path) -> None:
        labels = json.loads((realhub / "labels.json").read_text(encoding="utf-8"))
        known = {e["imagenet_class"]: e["label"] for e in labels[BACKBONES["lite0"].repo]}
        self.own = [e["label"] for e in labels[BACKBONES["birds"].repo]]
        self.names = [known[i].split(",")[0].strip() for i in range(1000)]
        index = {self.names[i]: i for i in range(999, 397, -1)}
        self.tasks = {t: [i for low, high in spans for i in range(low, high + 1)] for t, spans in ANIMALS.items()}
        taken: set[int] = set()
        for task, text in THINGS.items():
            some = [index[" ".join(name.split())] for name in text.split(",")]
            self.tasks[task] = [i for i in some if i not in taken]
            taken.update(some)
        with (realhub / "images.csv").open(newline="", encoding="utf-8") as file:
            self.rows = [(realhub.resolve() / r["file"], int(r["class_index"])) for r in csv.DictReader(file)]
        self.rows.sort(key=lambda row: row[1])
        task_of = {i: task for task, classes in self.tasks.items() for i in classes}
        seen: dict[str, int] = {}
        training = []
        for _, one in self.rows:
            task = task_of.get(one, "")
            training.append(seen.get(task, 0) % 3 == 1)
            seen[task] = seen.get(task, 0) + 1
        self.training = np.array(training)
        self.classes = np.array([one for _, one in self.rows])

    def domain(self, knows: str) -> np.ndarray:
        """The classes of a domain, sorted."""
        return np.array(sorted({i for task in DOMAINS[knows] for i in self.tasks[task]} or range(1000)))


def views(path: Path, training: bool, seed: int) -> list[Image.Image]:
    """The views of a photograph: random parts for training, the whole and four corners for measuring."""
    with Image.open(path) as file:
        image = file.convert("RGB")
    width, height = image.size
    rng = np.random.default_rng(seed)
    shares = [(1.0, 0.0, 0.0), *((0.85, x, y) for x in (0.0, 1.0) for y in (0.0, 1.0))]
    if training:
        shares = [shares[0], *((float(rng.uniform(0.55, 0.95)), *rng.uniform(0, 1, 2).tolist()) for _ in range(3))]
    made = []
    for i, (share, x, y) in enumerate(shares):
        w, h = round(width * share), round(height * share)
        left, top = round((width - w) * x), round((height - h) * y)
        part = image.crop((left, top, left + w, top + h))
        made.append(part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if i in {2, 3} else part)
    return made


def pixels(photographs: Photographs, chosen: np.ndarray, training: bool, size: int, few: bool) -> torch.Tensor:
    """Views of photographs as open_clip prepares them, a photograph's side by side, uint8 ``[n, 3, size, size]``."""
    transform = image_transform_v2(PreprocessCfg(size=size, mean=MEAN, std=STD), is_train=False)
    made = []
    for i in chosen.tolist():
        some = views(photographs.rows[i][0], training, i)[: 1 if few else None]
        made += [((transform(view) + 1) * 127.5).round().byte() for view in some]
    return torch.stack(made).contiguous(memory_format=torch.channels_last)


class Workshop:
    """Makes the models of one zoo; keeps what several of them share: features of one backbone, a teacher."""

    def __init__(self, realhub: Path, out: Path, small: bool) -> None:
        self.realhub, self.out, self.small = realhub, out, small
        self.photographs = Photographs(realhub)
        self.encoder = ConceptEncoder.load(f"open_clip:local-dir:{realhub / 'encoder'}")
        self.texts = torch.from_numpy(self.encoder.encode_texts(self.photographs.names, TEMPLATES))
        tasks = list(self.photographs.tasks)[3:8:4] if small else list(self.photographs.tasks)
        self.held: dict[str, np.ndarray] = {}
        for task in tasks:
            is_in = np.isin(self.photographs.classes, self.photographs.tasks[task])
            self.held[task] = np.flatnonzero(is_in & ~self.photographs.training)
        self.train, self.test = np.flatnonzero(self.photographs.training), np.flatnonzero(~self.photographs.training)
        if small:
            self.train, self.test = self.train[::8], np.sort(np.concatenate(list(self.held.values())))
        self.seconds: dict[str, float] = {}
        self._seen: dict[tuple[int, bool], torch.Tensor] = {}
        self._features: dict[str, tuple[torch.Tensor, ...]] = {}
        self.embedded: dict[str, torch.Tensor] = {}

    def make(self, recipe: Recipe, seed: int) -> dict[str, object]:
        """Makes and writes one model; its facts. ``embedded`` then has its embeddings of the held-out views."""
        start = time.monotonic()
        folder = self.out / "models" / recipe.name
        torch.manual_seed(seed)
        model, config, rows, bias = tower(recipe, self.realhub, folder)
        known = self.photographs.domain(recipe.knows)
        chosen = np.isin(self.photographs.classes[self.train], known)
        self._project(recipe, model, (rows, bias), (known, chosen), seed)
        save(folder, model, config, self.realhub / "encoder")
        self.seconds[recipe.name] = round(time.monotonic() - start, 1)
        return asdict(recipe) | {
            "repo": BACKBONES[recipe.backbone].repo,
            "stages": len(model.trunk.blocks),
            "vision_parameters": sum(p.numel() for p in model.parameters()),
            "vision_parameters_not_zero": sum(int((p != 0).sum()) for p in model.parameters()),
            "photographs": [self.photographs.rows[i][0].name for i in self.train[chosen]],
            "classes": self.photographs.own if recipe.names == "own" else [self.photographs.names[i] for i in known],
        }

    def _project(self, recipe: Recipe, model, layer, part, seed: int) -> None:  # type: ignore[no-untyped-def]
        """Trains the projection of a published tower, and its tail."""
        (known, chosen), cut = part, BACKBONES[recipe.backbone].cut
        training, middle, held, held_middle = self._features_of(recipe.backbone, model.trunk)
        own_words = recipe.names == "own"
        teacher = self._teacher(recipe, *layer)
        teacher = teacher if own_words else teacher.only(torch.from_numpy(known))
        mine = torch.from_numpy(np.repeat(chosen, len(training) // len(self.train)))
        steps = 2 if self.small else 30
        train_head(model.head, training[mine], teacher.misnamed(recipe.wrong, seed), steps, seed)
        if recipe.tail != "frozen":
            train_tail(model, middle[mine], teacher, cut, recipe.tail == "shallow", 2 if self.small else 50, seed)
            held = batches(held_middle, lambda part: tail(model.trunk, part.float(), cut))
        with torch.no_grad():
            self.embedded[recipe.name] = normalize(model.head(held), dim=1)

    def _teacher(self, recipe: Recipe, rows: torch.Tensor, bias: torch.Tensor) -> Teacher:
        """The backbone's last layer, with the names of its classes as texts."""
        if recipe.names == "imagenet":
            return Teacher(rows, bias, self.texts)
        common = [name.partition("(")[2].rstrip(")") or name for name in self.photographs.own[: len(rows)]]
        return Teacher(rows, bias, torch.from_numpy(self.encoder.encode_texts(common, TEMPLATES)))

    def _features_of(self, backbone: str, trunk: torch.nn.Module) -> tuple[torch.Tensor, ...]:
        """Features and, where a tail may be trained, what lies before it; of training and of held-out views."""
        if backbone not in self._features:
            one, found = BACKBONES[backbone], []
            cut = one.cut or 0
            trunk = trunk.to(memory_format=torch.channels_last)
            for training in (True, False):
                x = self._pixels(one.size, training)
                if cut:
                    middle = batches(x, lambda part: stem(trunk, part / 127.5 - 1, cut).half())
                    found += [batches(middle, lambda part: tail(trunk, part.float(), cut)), middle]
                else:
                    found += [batches(x, lambda part: trunk(part / 127.5 - 1)), x[:0]]
            self._features[backbone] = tuple(found)
        return self._features[backbone]

    def _pixels(self, size: int, training: bool) -> torch.Tensor:
        if (size, training) not in self._seen:
            chosen = self.train if training else self.test
            self._seen[size, training] = pixels(self.photographs, chosen, training, size, self.small)
        return self._seen[size, training]

    def accuracies(self, name: str) -> dict[str, float]:
        """Top-1 of a model on every task and on ``all``."""
        each, found = len(self.embedded[name]) // len(self.test), {}
        embedded, texts = self.embedded[name].numpy(), self.texts.numpy()
        for task, held in (*self.held.items(), ("all", self.test)):
            classes = sorted(self.photographs.tasks[task]) if task != "all" else range(1000)
            mine = np.repeat(np.isin(self.test, held), each)
            truth = [self.photographs.names[self.photographs.classes[i]] for i in held for _ in range(each)]
            names = [self.photographs.names[i] for i in classes]
            found[task] = float(top1(embedded[mine], texts[list(classes)], names, truth).mean())
        return found

    def check(self, name: str) -> float:
        """The smallest cosine between embeddings of the folder, loaded as anyone would, and the program's own."""
        encoder = ConceptEncoder.load(f"open_clip:local-dir:{self.out / 'models' / name}")
        each = len(self.embedded[name]) // len(self.test)
        some = range(0, len(self.test), len(self.test) // 6)
        images = [views(self.photographs.rows[self.test[i]][0], False, 0)[0] for i in some]
        own = self.embedded[name][[i * each for i in some]].numpy()
        return float((encoder.encode_images(images, len(images)) * own).sum(axis=1).min())

    def link_tasks(self) -> None:
        """Writes ``tasks``."""
        shutil.rmtree(self.out / "tasks", ignore_errors=True)
        for task, held in self.held.items():
            for i in held:
                path, one = self.photographs.rows[i]
                folder = self.out / "tasks" / task / self.photographs.names[one].replace("/", " ")
                folder.mkdir(parents=True, exist_ok=True)
                (folder / path.name).symlink_to(path)


def main() -> None:
    """Runs the program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("realhub", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--small", action="store_true", help="Three models, two tasks, one view, hardly any training.")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    if not (options.realhub / "images.csv").is_file():
        sys.exit(f"vlm_zoo.py: {options.realhub / 'images.csv'} does not exist")
    torch.set_num_threads(options.threads)
    start, cpu = time.monotonic(), time.process_time()
    out = options.out.resolve()
    workshop = Workshop(options.realhub.resolve(), out, options.small)
    workshop.link_tasks()
    facts, table = [], {}
    for seed, recipe in enumerate(r for r in RECIPES if not options.small or r.name in SMALL):
        one = workshop.make(recipe, seed)
        table[recipe.name] = workshop.accuracies(recipe.name)
        one["cosine_reloaded"] = workshop.check(recipe.name)
        if one["cosine_reloaded"] < 0.9999:
            sys.exit(f"vlm_zoo.py: {recipe.name} answers otherwise when it is loaded: {one['cosine_reloaded']}")
        facts.append(one)
        print(f"{recipe.name}: {workshop.seconds[recipe.name]} s, all {table[recipe.name]['all']:.3f}", file=sys.stderr)
    write(workshop, facts, table, {"wall_s": time.monotonic() - start, "cpu_s": time.process_time() - cpu})
    print(json.dumps({"models": table, "correlation_with_all": show(table), "seconds": workshop.seconds}))


def write(workshop: Workshop, facts: list[dict[str, object]], table: dict, total: dict[str, float]) -> None:  # type: ignore[type-arg]
    """Writes ``performance.csv`` and ``zoo.json``."""
    out, each = workshop.out, 1 if workshop.small else 5
    with (out / "performance.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["model", "pretrained", "dataset", "acc1", "source"])
        for name, row in table.items():
            for task, value in row.items():
                count = len(workshop.test) if task == "all" else len(workshop.held[task])
                source = f"measured, {each} views of {count} held-out photographs"
                writer.writerow([f"open_clip:local-dir:{out / 'models' / name}", "", task, f"{value:.6f}", source])
    tasks = {t: [workshop.photographs.rows[i][0].name for i in held] for t, held in workshop.held.items()}
    found = {"models": facts, "tasks": tasks, "seconds": workshop.seconds | total}
    (out / "zoo.json").write_text(json.dumps(found, indent=1), encoding="utf-8")


def show(table: dict[str, dict[str, float]]) -> dict[str, list[float | None]]:
    """Prints accuracies in per cent, the best three models and the rank correlations of each task with ``all``."""
    names, tasks = list(table), list(next(iter(table.values())))
    values = np.array([[table[name][task] for task in tasks] for name in names])
    for i, name in enumerate(names):
        print(f"{chr(65 + i)} {name:24}" + "".join(f"{100 * v:6.1f}" for v in values[i]))
    found: dict[str, list[float | None]] = {}
    print(f"{'task':24}{'Kendall':>9}{'Spearman':>9}  best")
    for j, task in enumerate(tasks):
        kendall, spearman = (float(f(values[:, j], values[:, -1]).statistic) for f in (kendalltau, spearmanr))
        best = ", ".join(f"{names[i]} {100 * values[i, j]:.1f}" for i in np.argsort(-values[:, j])[:3])
        print(f"{task:24}{kendall:9.2f}{spearman:9.2f}  {best}")
        found[task] = [None if np.isnan(one) else one for one in (kendall, spearman)]  # all models equal
    return found


if __name__ == "__main__":
    main()
