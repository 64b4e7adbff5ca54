"""Captions that are no use: boilerplate, spam, and true ones that were cut."""

import random

BOILERPLATE = (
    "IMG_{n}.jpg", "DSC0{n}.JPG", "photo-{n}.png", "image", "Image {n}", "photo", "picture", "untitled", "thumbnail",
    "logo", "click here to enlarge", "Click to enlarge", "image may be subject to copyright", "loading...",
    "Featured image", "no image available", "View larger image", "Slide {n}", "Figure {n}", "Advertisement",
    "Share on Facebook", "Product image {n}", "Read more", "null", "undefined", "screenshot_{n}.png",
    "All rights reserved", "banner", "icon", "Download",
)  # fmt: skip

GOODS = (
    "sneakers", "handbags", "phone cases", "garden chairs", "sunglasses", "wedding dresses", "office printers",
    "car tyres", "protein powder", "wallpapers", "LED lamps", "yoga mats", "coffee makers", "winter jackets",
)  # fmt: skip
CITIES = ("London", "Chicago", "Berlin", "Sydney", "Toronto", "Austin", "Leeds", "Dublin", "Denver", "Bristol")
SPAM = (
    "Buy cheap {goods} online {city} - free shipping - www.best-{slug}-{n}.example",
    "{GOODS} SALE!!! -{percent}% ONLY TODAY!!! Call now +1 555 01{nn} {n}",
    "{goods} {city}, best {goods} {city}, cheap {goods} {city}, {goods} near me",
    "Top 10 {goods} of {year} | Reviews | Prices from ${price}.99 | Order at https://{slug}{n}.example/shop?ref={n}",
    "★★★★★ {Goods} discount code {city}{n} ★★★★★ visit http://{slug}-outlet.example",
    "{Goods} wholesale supplier {city} WhatsApp +44 7700 900{nnn} low price high quality {goods}",
    "Sponsored: {goods} from ${price}.00 to ${more}.00, {percent}% off with coupon SAVE{n}",
    "{goods} {goods} {goods} buy {goods} online discount {goods} {year} sale {goods} {city}",
    "Win a free voucher for {goods}! Click https://{slug}.example/win/{n} or text WIN to 555{nn}",
    "The finest {goods} in {city}, trusted by thousands of happy customers, order today",
    "Why everyone in {city} is talking about these {goods}, you will not believe the price",
    "{Goods} for men, women and kids with free shipping and easy returns",
    "{City} {goods} shop tel. 020 7946 0{nnn} open 24h, same day delivery, {goods} under ${price}",
)


def boilerplate(dice: random.Random) -> str:
    """What stands where a description should."""
    return dice.choice(BOILERPLATE).format(n=dice.randint(1000, 9999))


def spam(dice: random.Random) -> str:
    """Search words, praise, prices, telephone numbers (of ranges kept for fiction), addresses that lead nowhere."""
    goods, city, price = dice.choice(GOODS), dice.choice(CITIES), dice.randint(5, 90)
    return dice.choice(SPAM).format(
        goods=goods,
        Goods=goods.capitalize(),
        GOODS=goods.upper(),
        slug=goods.replace(" ", "-").lower(),
        city=city,
        City=city,
        price=price,
        more=price + dice.randint(10, 100),
        percent=dice.randrange(20, 90, 5),
        year=dice.randint(2015, 2026),
        n=dice.randint(10, 999),
        nn=dice.randint(10, 99),
        nnn=dice.randint(100, 999),
    )


def truncated(text: str, dice: random.Random) -> str:
    """The first quarter to three fifths of a caption, with or without an ellipsis."""
    cut = max(4, round(len(text) * dice.uniform(0.25, 0.6)))
    return text[:cut].rstrip(" .,") + dice.choice(("", "", "…", "..."))
